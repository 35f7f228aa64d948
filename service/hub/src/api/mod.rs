//! The table of routes, and what every request has in common.
//!
//! A handler gets a [`Call`]: path, query, headers and a body not yet read. It first asks for a
//! permit (who may do this here), then reads the body, then runs one store job. Errors carry
//! themselves to the edge of their router, where hub and provisioning write their own body.

mod dps;
mod registry;
mod service;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use contract::json;
use contract::sas::{Token, decode};
use serde_json::Value;

use crate::auth::{Principal, Right};
use crate::error::Error;
use crate::record::Identity;
use crate::registry::{self as records, IfMatch};
use crate::{Hub, clock};

/// For the whole body of a request.
const BODY: Duration = Duration::from_secs(30);
/// An identity or enrolment.
const RECORD: usize = 64 << 10;

/// All routes.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    let hub_routes = Router::new()
        .route("/devices", get(registry::list))
        .route(
            "/devices/{device}",
            get(registry::read)
                .put(registry::put)
                .delete(registry::delete),
        )
        .route("/devices/{device}/modules", get(registry::modules))
        .route(
            "/devices/{device}/modules/{module}",
            get(registry::read)
                .put(registry::put)
                .delete(registry::delete),
        )
        .route(
            "/devices/{device}/applyConfigurationContent",
            post(service::deploy),
        )
        .route(
            "/twins/{device}",
            get(service::twin)
                .patch(service::patch_twin)
                .put(service::put_twin),
        )
        .route(
            "/twins/{device}/modules/{module}",
            get(service::twin)
                .patch(service::patch_twin)
                .put(service::put_twin),
        )
        .route("/twins/{device}/methods", post(service::method))
        .route(
            "/twins/{device}/modules/{module}/methods",
            post(service::method),
        )
        .route("/messages/events", get(service::events))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(Arc::clone(&hub))
        .layer(map_response(hub_errors));
    let dps_routes = Router::new()
        .route(
            "/{scope}/registrations/{registration}/register",
            put(dps::register),
        )
        .route(
            "/{scope}/registrations/{registration}/operations/{operation}",
            get(dps::operation),
        )
        .route("/{scope}/registrations/{registration}", post(dps::state))
        .route(
            "/enrollments/{id}",
            get(dps::read_individual)
                .put(dps::put_individual)
                .delete(dps::delete_individual),
        )
        .route(
            "/enrollments/{id}/attestationmechanism",
            post(dps::keys_individual),
        )
        .route(
            "/enrollmentGroups/{id}",
            get(dps::read_group)
                .put(dps::put_group)
                .delete(dps::delete_group),
        )
        .route(
            "/enrollmentGroups/{id}/attestationmechanism",
            post(dps::keys_group),
        )
        .method_not_allowed_fallback(no_method)
        .with_state(hub)
        .layer(map_response(dps_errors));
    hub_routes.merge(dps_routes)
}

async fn no_route() -> Error {
    Error::NoRoute(404)
}

async fn no_method() -> Error {
    Error::NoRoute(405)
}

impl IntoResponse for Error {
    /// Status only; the body follows at the edge of the router.
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

async fn hub_errors(mut response: Response) -> Response {
    let Some(error) = response.extensions_mut().remove::<Arc<Error>>() else {
        return response;
    };
    let mut answer = answer(response.status(), &error.hub_body(&clock::stamp()));
    answer
        .headers_mut()
        .insert("iothub-errorcode", HeaderValue::from_static(error.name()));
    answer
}

async fn dps_errors(mut response: Response) -> Response {
    let Some(error) = response.extensions_mut().remove::<Arc<Error>>() else {
        return response;
    };
    answer(response.status(), &error.dps_body(&clock::stamp()))
}

/// A JSON answer.
fn answer(status: StatusCode, body: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (status, kind, body.to_string()).into_response()
}

/// A JSON answer with the etag of what it shows, quoted as HTTP wants it.
fn tagged(etag: &str, body: &Value) -> Response {
    let mut response = answer(StatusCode::OK, body);
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// One request.
struct Call {
    hub: Arc<Hub>,
    path: Vec<(String, String)>,
    query: String,
    headers: HeaderMap,
    body: Body,
}

impl FromRequest<Arc<Hub>> for Call {
    type Rejection = Error;

    async fn from_request(request: Request, hub: &Arc<Hub>) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        let path = RawPathParams::from_request_parts(&mut parts, hub)
            .await
            .map_err(|_| Error::Argument("the path is not UTF-8".into()))?;
        let path = path
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let call = Self {
            hub: Arc::clone(hub),
            path,
            query,
            headers: parts.headers,
            body,
        };
        match call.query("api-version")? {
            Some(version) if crate::is_api_version(&version) => Ok(call),
            Some(_) => Err(Error::Argument("api-version is not known".into())),
            None => Err(Error::Argument("api-version is missing".into())),
        }
    }
}

impl Call {
    /// A part of the path; the route's pattern says that it is there.
    fn id(&self, name: &str) -> &str {
        self.path
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// The device or module that the path names.
    fn identity(&self) -> Result<Identity, Error> {
        let module = Some(self.id("module")).filter(|module| !module.is_empty());
        Identity::new(self.id("device"), module)
    }

    /// A member of the query; given twice it has no meaning.
    fn query(&self, name: &str) -> Result<Option<String>, Error> {
        let mut found = self.query.split('&').filter_map(|field| {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            (key == name).then_some(value)
        });
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(text), None) => match decode(text) {
                Some(text) => Ok(Some(text)),
                None => Err(Error::Argument(format!("{name} is not encoded"))),
            },
            (Some(_), Some(_)) => Err(Error::Argument(format!("{name} is given twice"))),
        }
    }

    /// A number in the query.
    fn number<N: std::str::FromStr>(&self, name: &str, default: N) -> Result<N, Error> {
        match self.query(name)? {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| Error::Argument(format!("{name} is not a number"))),
        }
    }

    fn header(&self, name: header::HeaderName) -> Result<Option<&str>, Error> {
        let mut values = self.headers.get_all(&name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => match value.to_str() {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(Error::Argument(format!("header {name} is not ASCII"))),
            },
            (Some(_), Some(_)) => Err(Error::Argument(format!("header {name} is given twice"))),
        }
    }

    fn if_match(&self) -> Result<IfMatch, Error> {
        Ok(IfMatch::parse(self.header(header::IF_MATCH)?))
    }

    fn token(&self) -> Result<Token, Error> {
        let text = self.header(header::AUTHORIZATION)?;
        Ok(Token::parse(
            text.ok_or(Error::Unauthorized("no Authorization header"))?,
        )?)
    }

    /// Proves the caller for one target (`None`: the hub as a whole) and decides whether that
    /// reaches far enough. A device reaches its own record and its modules, a module reads its own.
    ///
    /// The future does not borrow the call: its body is not to be shared between threads.
    fn permit(
        &self,
        right: Right,
        target: Option<&Identity>,
    ) -> impl Future<Output = Result<Principal, Error>> + Send + use<> {
        let (token, target, hub) = (self.token(), target.cloned(), Arc::clone(&self.hub));
        async move { permit(hub, token?, right, target).await }
    }

    /// Reads the body as strict JSON.
    async fn document(self, limit: usize) -> Result<Value, Error> {
        let bytes = tokio::time::timeout(BODY, read(self.body, limit))
            .await
            .map_err(|_| Error::Document("the body did not arrive in time".into()))??;
        json::check(&bytes, json::Limits::document(limit))?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

async fn permit(
    hub: Arc<Hub>,
    token: Token,
    right: Right,
    target: Option<Identity>,
) -> Result<Principal, Error> {
    let now = clock::now();
    if token.policy().is_some() {
        return hub.authority.policy(&token, right, target.as_ref(), now);
    }
    let target = target.ok_or(Error::Reach("it needs a policy"))?;
    let (whom, judge) = (target.clone(), Arc::clone(&hub));
    let proved = hub.store.run(move |connection| {
        // A device that does not exist looks like one with another key.
        const REFUSED: Error = Error::Unauthorized("signature does not verify");
        let device = records::find(connection, &whom.of_device())?.ok_or(REFUSED)?;
        let module = match whom.module {
            Some(_) => records::find(connection, &whom)?,
            None => None,
        };
        let is_module =
            module.is_some_and(|module| judge.authority.entity(&token, &module, now).is_ok());
        if device.enabled && is_module {
            return Ok(Principal::Module);
        }
        judge
            .authority
            .entity(&token, &device, now)
            .map(|()| Principal::Device)
    });
    let principal = proved.await?;
    match (&principal, right, &target.module) {
        (Principal::Device, Right::RegistryRead, _)
        | (Principal::Device, Right::RegistryWrite, Some(_))
        | (Principal::Module, Right::RegistryRead, Some(_)) => Ok(principal),
        _ => Err(Error::Reach("it needs a policy")),
    }
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Error> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|_| Error::Document("the body broke off".into()))?;
        if let Ok(data) = frame.into_data() {
            if data.len() > limit - bytes.len() {
                return Err(Error::TooLarge(limit));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}
