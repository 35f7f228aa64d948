//! For operators: twins, deployments, direct methods, and reading telemetry.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, answer, tagged};
use crate::auth::Right;
use crate::deploy::{self, Content};
use crate::error::Error;
use crate::twins::{self, How, Twin};
use crate::{clock, events};

/// A deployment: many modules, each with a twin section.
const CONTENT: usize = 1 << 20;
/// The payload of a method, and what surrounds it.
const METHOD: usize = (128 << 10) + 4096;
/// Messages in one answer.
const EVENTS: u32 = 1000;

pub(super) async fn twin(call: Call) -> Result<Response, Error> {
    let identity = call.identity()?;
    call.permit(Right::ServiceConnect, Some(&identity)).await?;
    let whom = identity.clone();
    let twin = call
        .hub
        .store
        .run(move |connection| Twin::read(connection, &whom))
        .await?;
    Ok(tagged(
        twin.twin_etag(),
        &twin.document(call.hub.bus.is_connected(&identity)),
    ))
}

pub(super) async fn patch_twin(call: Call) -> Result<Response, Error> {
    change_twin(call, How::Patch).await
}

pub(super) async fn put_twin(call: Call) -> Result<Response, Error> {
    change_twin(call, How::Replace).await
}

async fn change_twin(call: Call, how: How) -> Result<Response, Error> {
    let identity = call.identity()?;
    call.permit(Right::ServiceConnect, Some(&identity)).await?;
    let (hub, if_match) = (Arc::clone(&call.hub), call.if_match()?);
    let limits = hub.twin_limits;
    let document = call.document(4 * limits.size).await?;
    let whom = identity.clone();
    let (answer, changed) = tokio::sync::oneshot::channel();
    let notifier = Arc::clone(&hub);
    let work = move |connection: &_| {
        twins::change(
            connection,
            &whom,
            &document,
            how,
            &if_match,
            &limits,
            &clock::stamp(),
        )
    };
    let then = move |result: Result<(Twin, Option<twins::Notice>), Error>| {
        // Here, after the commit and in its order, one notice per version.
        if let Ok((_, Some(notice))) = &result {
            notifier.bus.notify(notice);
        }
        let _ = answer.send(result.map(|(twin, _)| twin));
    };
    hub.store.submit(work, then).await?;
    let twin = changed
        .await
        .map_err(|_| crate::store::StoreError::Stopped)??;
    Ok(tagged(
        twin.twin_etag(),
        &twin.document(hub.bus.is_connected(&identity)),
    ))
}

pub(super) async fn deploy(call: Call) -> Result<Response, Error> {
    let device = call.identity()?;
    // Of the registry's rights; a device cannot deploy to itself.
    let token = call.token()?;
    if token.policy().is_none() {
        return Err(Error::Reach("it needs a policy"));
    }
    call.permit(Right::RegistryWrite, Some(&device)).await?;
    let hub = Arc::clone(&call.hub);
    let limits = hub.twin_limits;
    let content = Content::parse(&call.document(CONTENT).await?)?;
    let (answer, done) = tokio::sync::oneshot::channel();
    let notifier = Arc::clone(&hub);
    let work = move |connection: &_| {
        deploy::apply(connection, &device, &content, &limits, &clock::stamp())
    };
    let then = move |result: Result<Vec<twins::Notice>, Error>| {
        if let Ok(notices) = &result {
            notices
                .iter()
                .for_each(|notice| notifier.bus.notify(notice));
        }
        let _ = answer.send(result.map(drop));
    };
    hub.store.submit(work, then).await?;
    done.await
        .map_err(|_| crate::store::StoreError::Stopped)??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Method {
    method_name: String,
    #[serde(default)]
    payload: Value,
    response_timeout_in_seconds: Option<u64>,
    /// Accepted and not waited for: a client that is not there now is not online.
    #[serde(default, rename = "connectTimeoutInSeconds")]
    _connect_timeout: Option<u64>,
}

pub(super) async fn method(call: Call) -> Result<Response, Error> {
    let identity = call.identity()?;
    call.permit(Right::ServiceConnect, Some(&identity)).await?;
    let hub = Arc::clone(&call.hub);
    let method: Method = serde_json::from_value(call.document(METHOD).await?)?;
    let seconds = method.response_timeout_in_seconds.unwrap_or(30);
    if !(5..=300).contains(&seconds) {
        return Err(Error::Argument(
            "responseTimeoutInSeconds is between 5 and 300".into(),
        ));
    }
    if method.method_name.is_empty() || method.method_name.len() > 100 {
        return Err(Error::Argument("methodName has 1 to 100 characters".into()));
    }
    let whom = identity.clone();
    hub.store
        .run(move |connection| crate::registry::read(connection, &whom).map(drop))
        .await?;
    let payload = method.payload.to_string();
    let patience = Duration::from_secs(seconds);
    let (status, body) = hub
        .bus
        .call(&identity, &method.method_name, payload.as_bytes(), patience)
        .await?;
    let payload = match body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&body)
            .map_err(|_| Error::Operation("the device's answer is not JSON"))?,
    };
    Ok(answer(
        StatusCode::OK,
        &json!({"status": status, "payload": payload}),
    ))
}

pub(super) async fn events(call: Call) -> Result<Response, Error> {
    call.permit(Right::ServiceConnect, None).await?;
    let after = call.number("after", 0_i64)?;
    let max = call.number("max", 100_u32)?.min(EVENTS);
    let found = call
        .hub
        .store
        .run(move |connection| events::read(connection, after, max))
        .await?;
    Ok(answer(StatusCode::OK, &Value::Array(found)))
}
