//! From endpoint types to a service: the one place that knows how a request becomes a call.
//!
//! The order of checks is the compatible one (identity-service.md 1.4, module-runtime.md 1.3):
//! version, path, method, body limit, content type, JSON; then who is calling; then what is
//! missing; then the handler. Default is deny: each row carries its caller class.

use std::marker::PhantomData;
use std::sync::Arc;

use contract::audit::Event;
use contract::endpoint::{
    Api, Ask, BadTarget, Body, Callers, Endpoint, Method, Parts, Target, match_path,
};
use contract::json::{self, Limits};
use contract::names::ModuleName;
use contract::refusal::{Class, Refusal};

use crate::http::Head;
use crate::peer::{Caller, Credentials};

/// Turns a proven caller into a principal, or refuses. One per daemon and API.
pub trait Gate: Send + Sync + 'static {
    /// Who a handler acts for. Two callers with equal principals may share a request (R7).
    type Principal: PartialEq;

    /// Judges one caller for one caller class; `module` is who the request speaks for.
    ///
    /// # Errors
    /// A [`Refusal`]; `forbidden` also closes the connection.
    fn admit(
        &self,
        callers: Callers,
        module: Option<&ModuleName>,
        caller: &Caller,
    ) -> Result<Self::Principal, Refusal>;

    /// Told of each refusal that concerns who is calling, for the audit log. `who` is what the
    /// socket says of a caller that may not even be proved.
    fn refused(&self, _who: Credentials, _refusal: &Refusal) {}
}

/// What the server needs of an API: a plan from the head, then an answer from the body.
pub trait Service: Send + Sync {
    /// Finds the row; its limit holds before the body is read.
    ///
    /// # Errors
    /// The refusal of version, path or method.
    fn plan(&self, head: &Head) -> Result<Plan, Refusal>;

    /// Answers. `callers[0]` connected; the others wrote parts of this request.
    fn answer(&self, plan: Plan, body: &[u8], callers: &[&Caller]) -> Answer;

    /// Told of a refusal for which there is no request, such as a caller that is gone.
    fn refused(&self, who: Credentials, refusal: &Refusal);
}

/// A matched row.
#[derive(Debug)]
pub struct Plan {
    row: usize,
    parts: Parts,
    body: Result<BodyKind, Refusal>,
    /// Longest body in bytes.
    pub limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyKind {
    Json,
    Ignored,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its JSON body.
    pub body: Option<Vec<u8>>,
    /// Whether the connection ends with it.
    pub close: bool,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let close = refusal.class == Class::Forbidden;
        let status = refusal.class.status();
        Self {
            status,
            body: Some(message(&refusal.message)),
            close,
        }
    }
}

/// The compatible error body.
#[must_use]
pub fn message(text: &str) -> Vec<u8> {
    serde_json::json!({ "message": text })
        .to_string()
        .into_bytes()
}

type Run<P> =
    dyn Fn(&P, &Parts, Option<&[u8]>, &[&Caller]) -> Result<Vec<u8>, Refusal> + Send + Sync;

/// A handler: what the daemon has, who asks, what for.
pub type Handler<P, E> =
    fn(&P, &<P as Gate>::Principal, Ask<E>) -> Result<<E as Endpoint>::Response, Refusal>;

struct Row<P> {
    method: Method,
    path: &'static str,
    since: &'static str,
    limit: usize,
    success: u16,
    run: Box<Run<P>>,
}

/// An API with a handler for each endpoint.
pub struct Routes<A, P> {
    parts: Arc<P>,
    rows: Vec<Row<P>>,
    api: PhantomData<fn() -> A>,
}

impl<A: Api, P: Gate> Routes<A, P> {
    /// An API without endpoints.
    #[must_use]
    pub fn new(parts: Arc<P>) -> Self {
        Self {
            parts,
            rows: Vec::new(),
            api: PhantomData,
        }
    }

    /// Adds an endpoint. Its type says all but what it does.
    #[must_use]
    pub fn on<E: Endpoint<Api = A>>(mut self, handler: Handler<P, E>) -> Self {
        let run = move |parts: &P, values: &Parts, text: Option<&[u8]>, callers: &[&Caller]| {
            let target = E::Target::read(values);
            if matches!(target, Err(BadTarget::NotFound)) {
                // A word of the path that nothing has: no route matches, whoever asks.
                return Err(Refusal::new(Class::NotFound, "not found"));
            }
            let body = match text {
                None if E::Request::NEEDED => None,
                text => Some(E::Request::read(text).map_err(unprocessable)?),
            };
            let module = target.as_ref().ok().and_then(Target::module);
            let who = admit::<E, P>(parts, module, callers)?;
            let Some(body) = body else {
                return Err(Refusal::new(Class::BadRequest, E::NO_BODY));
            };
            let target = target.map_err(|bad| Refusal::new(Class::BadRequest, bad.to_string()))?;
            let response = handler(parts, &who, Ask { target, body })?;
            Ok(response.write().unwrap_or_default())
        };
        self.rows.push(Row {
            method: E::METHOD,
            path: E::PATH,
            since: E::SINCE,
            limit: E::LIMIT,
            success: E::SUCCESS,
            run: Box::new(run),
        });
        self
    }
}

fn unprocessable(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(Class::Unprocessable, error.to_string())
}

/// Everybody who wrote must be the same principal as the connection (R7, A3, A4).
fn admit<E: Endpoint, P: Gate>(
    parts: &P,
    module: Option<&ModuleName>,
    callers: &[&Caller],
) -> Result<P::Principal, Refusal> {
    if matches!(E::CALLERS, Callers::Module) && module.is_none() {
        // A name outside the grammar is nobody's (A10, A14).
        let alias = Refusal::forbidden("the path holds no module name");
        if let Some(caller) = callers.first() {
            let event = alias.clone().recorded_as(Event::PeerAlias);
            parts.refused(caller.credentials(), &event);
        }
        return Err(alias);
    }
    let mut principal = None;
    for caller in callers {
        let judged = parts.admit(E::CALLERS, module, caller).and_then(|one| {
            if !caller.alive() {
                let gone = Refusal::forbidden("the caller exited before the decision");
                return Err(gone.recorded_as(Event::PeerStale));
            }
            match &principal {
                Some(first) if *first != one => {
                    let other = Refusal::forbidden("another principal wrote to this connection");
                    Err(other.recorded_as(Event::PeerWriterChanged))
                }
                _ => Ok(one),
            }
        });
        match judged {
            Ok(one) => principal = Some(one),
            Err(mut refusal) => {
                // The connection's own principal was allowed: this one came by its socket (A3).
                if principal.is_some() && refusal.event == Some(Event::PeerRefused) {
                    refusal.event = Some(Event::PeerWriterChanged);
                }
                parts.refused(caller.credentials(), &refusal);
                return Err(refusal);
            }
        }
    }
    principal.ok_or_else(|| Refusal::forbidden("nobody wrote this request"))
}

impl<A: Api, P: Gate> Service for Routes<A, P> {
    fn plan(&self, head: &Head) -> Result<Plan, Refusal> {
        let bad = |text: String| Refusal::new(Class::BadRequest, text);
        let version = head
            .query
            .iter()
            .rev()
            .find(|(name, _)| name == "api-version");
        let version = match version {
            None => return Err(bad("api-version not specified".to_owned())),
            Some((_, version)) => A::VERSIONS
                .iter()
                .find(|known| *known == version)
                .ok_or_else(|| bad(format!("invalid api-version {version:?}")))?,
        };
        let mut found = false;
        for (index, row) in self.rows.iter().enumerate() {
            if *version < row.since {
                continue;
            }
            let Some(path) = match_path(row.path, &head.path) else {
                continue;
            };
            found = true;
            if row.method.as_str() != head.method {
                continue;
            }
            let query = head
                .query
                .iter()
                .filter(|(n, _)| n != "api-version")
                .cloned()
                .collect();
            return Ok(Plan {
                row: index,
                parts: Parts { path, query },
                body: body_kind(row.method, head.content_type.as_deref()),
                limit: row.limit,
            });
        }
        if found {
            return Err(bad("method not allowed".to_owned()));
        }
        Err(Refusal::new(Class::NotFound, "not found"))
    }

    fn answer(&self, plan: Plan, body: &[u8], callers: &[&Caller]) -> Answer {
        let row = &self.rows[plan.row];
        let text = match plan.body {
            Err(refusal) => return refusal.into(),
            Ok(BodyKind::Ignored) => None,
            // An empty PUT body is a JSON error, an empty other one is absent.
            Ok(BodyKind::Json) if body.is_empty() && row.method != Method::Put => None,
            Ok(BodyKind::Json) => Some(body),
        };
        if let Some(text) = text
            && let Err(error) = json::check(text, Limits::document(plan.limit))
        {
            return unprocessable(error).into();
        }
        match (row.run)(&self.parts, &plan.parts, text, callers) {
            Ok(body) if body.is_empty() => Answer {
                status: 204,
                body: None,
                close: false,
            },
            Ok(body) => Answer {
                status: row.success,
                body: Some(body),
                close: false,
            },
            Err(refusal) => refusal.into(),
        }
    }

    fn refused(&self, who: Credentials, refusal: &Refusal) {
        self.parts.refused(who, refusal);
    }
}

fn body_kind(method: Method, content_type: Option<&str>) -> Result<BodyKind, Refusal> {
    match (method, content_type) {
        (Method::Get, _) => Ok(BodyKind::Ignored),
        (_, None | Some("application/json")) => Ok(BodyKind::Json),
        (Method::Put, Some(_)) => Err(Refusal::new(
            Class::Unsupported,
            "request body must be application/json",
        )),
        (_, Some(_)) => Ok(BodyKind::Ignored),
    }
}
