//! The provisioning service: registrations by devices, enrolments by operators.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use contract::names::RegistrationId;
use contract::sas::encode;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{Call, RECORD, answer, tagged};
use crate::auth::Right;
use crate::clock;
use crate::enrolments::{self, Kind, Proved};
use crate::error::Error;
use crate::registry::Live;

/// A registration may carry a payload for the allocation.
const REGISTRATION: usize = 64 << 10;

/// Always 202, although the decision is immediate: identity daemons take nothing else.
pub(super) async fn register(call: Call) -> Result<Response, Error> {
    let prove = proof(&call)?;
    let hub = Arc::clone(&call.hub);
    let (scope, id) = (
        call.id("scope").to_owned(),
        call.id("registration").to_owned(),
    );
    let document = call.document(REGISTRATION).await?;
    same_id(&document, &id)?;
    let work = move |connection: &Connection| {
        enrolments::register(connection, prove(connection)?, &clock::stamp())
    };
    let done = hub.store.run(work).await?;
    if done.device.1 == Live::Close {
        hub.bus.close(&done.device.0);
    }
    let body = json!({"operationId": done.operation, "status": "assigning"});
    let mut response = answer(StatusCode::ACCEPTED, &body);
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    let place = format!(
        "/{}/registrations/{}/operations/{}",
        encode(&scope),
        encode(&id),
        done.operation
    );
    if let Ok(place) = HeaderValue::from_str(&place) {
        headers.insert(header::LOCATION, place);
    }
    Ok(response)
}

pub(super) async fn operation(call: Call) -> Result<Response, Error> {
    let prove = proof(&call)?;
    let operation = call.id("operation").to_owned();
    let (asked, advertise) = (operation.clone(), call.hub.advertise.clone());
    let work = move |connection: &Connection| {
        enrolments::state(connection, &prove(connection)?, Some(&asked), &advertise)
    };
    let state = call.hub.store.run(work).await?;
    let body = json!({"operationId": operation, "status": "assigned", "registrationState": state});
    Ok(answer(StatusCode::OK, &body))
}

pub(super) async fn state(call: Call) -> Result<Response, Error> {
    let prove = proof(&call)?;
    let hub = Arc::clone(&call.hub);
    let id = call.id("registration").to_owned();
    same_id(&call.document(REGISTRATION).await?, &id)?;
    let advertise = hub.advertise.clone();
    let work = move |connection: &Connection| {
        enrolments::state(connection, &prove(connection)?, None, &advertise)
    };
    Ok(answer(StatusCode::OK, &hub.store.run(work).await?))
}

/// The proof that a request offers, to be judged inside the store job that uses it.
fn proof(
    call: &Call,
) -> Result<impl FnOnce(&Connection) -> Result<Proved, Error> + Send + use<>, Error> {
    let id = RegistrationId::new(call.id("registration"))?;
    let (token, scope) = (call.token()?, call.hub.scope.clone());
    if call.id("scope") != scope {
        return Err(Error::Unauthorized("registration refused"));
    }
    Ok(move |connection: &Connection| {
        enrolments::prove(connection, &scope, &id, &token, clock::now())
    })
}

fn same_id(document: &Value, id: &str) -> Result<(), Error> {
    match document.get("registrationId").and_then(Value::as_str) {
        Some(given) if given.eq_ignore_ascii_case(id) => Ok(()),
        _ => Err(Error::Argument(
            "registrationId in the body is not the one in the path".into(),
        )),
    }
}

pub(super) async fn put_individual(call: Call) -> Result<Response, Error> {
    put(call, Kind::Individual).await
}

pub(super) async fn put_group(call: Call) -> Result<Response, Error> {
    put(call, Kind::Group).await
}

async fn put(call: Call, kind: Kind) -> Result<Response, Error> {
    call.permit(Right::Provisioning, None).await?;
    let (hub, id, if_match) = (
        Arc::clone(&call.hub),
        call.id("id").to_owned(),
        call.if_match()?,
    );
    let document = call.document(RECORD).await?;
    let work = move |connection: &Connection| {
        enrolments::put(connection, kind, &id, &document, &if_match, &clock::stamp())
    };
    Ok(shown(&hub.store.run(work).await?))
}

pub(super) async fn read_individual(call: Call) -> Result<Response, Error> {
    read(call, Kind::Individual).await
}

pub(super) async fn read_group(call: Call) -> Result<Response, Error> {
    read(call, Kind::Group).await
}

async fn read(call: Call, kind: Kind) -> Result<Response, Error> {
    call.permit(Right::Provisioning, None).await?;
    let id = call.id("id").to_owned();
    let found = call
        .hub
        .store
        .run(move |c| enrolments::read(c, kind, &id))
        .await?;
    Ok(shown(&found))
}

pub(super) async fn keys_individual(call: Call) -> Result<Response, Error> {
    keys(call, Kind::Individual).await
}

pub(super) async fn keys_group(call: Call) -> Result<Response, Error> {
    keys(call, Kind::Group).await
}

async fn keys(call: Call, kind: Kind) -> Result<Response, Error> {
    call.permit(Right::Provisioning, None).await?;
    let id = call.id("id").to_owned();
    let found = call
        .hub
        .store
        .run(move |c| enrolments::attestation(c, kind, &id))
        .await?;
    Ok(answer(StatusCode::OK, &found))
}

pub(super) async fn delete_individual(call: Call) -> Result<Response, Error> {
    delete(call, Kind::Individual).await
}

pub(super) async fn delete_group(call: Call) -> Result<Response, Error> {
    delete(call, Kind::Group).await
}

async fn delete(call: Call, kind: Kind) -> Result<Response, Error> {
    call.permit(Right::Provisioning, None).await?;
    let (id, if_match) = (call.id("id").to_owned(), call.if_match()?);
    call.hub
        .store
        .run(move |c| enrolments::delete(c, kind, &id, &if_match))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn shown(document: &Value) -> Response {
    tagged(document["etag"].as_str().unwrap_or_default(), document)
}
