//! `/devices`: identities of devices and modules.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::{Call, RECORD, answer, tagged};
use crate::auth::Right;
use crate::clock;
use crate::error::Error;
use crate::record::Record;
use crate::registry::{self, Document, Live};

pub(super) async fn list(call: Call) -> Result<Response, Error> {
    call.permit(Right::RegistryRead, None).await?;
    let top = call.number("top", 1000_u32)?.min(1000);
    let found = call
        .hub
        .store
        .run(move |connection| registry::devices(connection, top))
        .await?;
    Ok(answer(StatusCode::OK, &documents(&call, &found)))
}

pub(super) async fn modules(call: Call) -> Result<Response, Error> {
    let device = call.identity()?;
    call.permit(Right::RegistryRead, Some(&device)).await?;
    let found = call
        .hub
        .store
        .run(move |connection| registry::modules(connection, &device))
        .await?;
    Ok(answer(StatusCode::OK, &documents(&call, &found)))
}

pub(super) async fn read(call: Call) -> Result<Response, Error> {
    let identity = call.identity()?;
    call.permit(Right::RegistryRead, Some(&identity)).await?;
    let found = call
        .hub
        .store
        .run(move |connection| registry::read(connection, &identity))
        .await?;
    Ok(shown(&call.hub, &found))
}

pub(super) async fn put(call: Call) -> Result<Response, Error> {
    let identity = call.identity()?;
    call.permit(Right::RegistryWrite, Some(&identity)).await?;
    let (hub, if_match) = (Arc::clone(&call.hub), call.if_match()?);
    let document: Document = serde_json::from_value(call.document(RECORD).await?)?;
    let whom = identity.clone();
    let work = move |connection: &_| {
        registry::put(connection, &whom, &document, &if_match, &clock::stamp())
    };
    let (record, live) = hub.store.run(work).await?;
    if live == Live::Close {
        hub.bus.close(&identity);
    }
    Ok(shown(&hub, &record))
}

pub(super) async fn delete(call: Call) -> Result<Response, Error> {
    let identity = call.identity()?;
    call.permit(Right::RegistryWrite, Some(&identity)).await?;
    let (whom, if_match) = (identity.clone(), call.if_match()?);
    call.hub
        .store
        .run(move |connection| registry::delete(connection, &whom, &if_match))
        .await?;
    call.hub.bus.close(&identity);
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn shown(hub: &crate::Hub, record: &Record) -> Response {
    tagged(
        &record.etag,
        &record.document(hub.bus.is_connected(&record.identity)),
    )
}

fn documents(call: &Call, records: &[Record]) -> Value {
    let shown = |record: &Record| record.document(call.hub.bus.is_connected(&record.identity));
    Value::Array(records.iter().map(shown).collect())
}
