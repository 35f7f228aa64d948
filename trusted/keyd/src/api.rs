//! The key API as a table: which function answers which endpoint.

use std::sync::Arc;

use contract::api::key::{self as api, KeyApi};
use local::routes::Routes;

use crate::daemon::Keyd;
use crate::{cipher, keys, pairs, sign};

/// The service behind `keyd.sock`.
#[must_use]
pub fn routes(keyd: Arc<Keyd>) -> Routes<KeyApi, Keyd> {
    Routes::new(keyd)
        .on::<api::Sign>(sign::sign)
        .on::<api::Encrypt>(cipher::encrypt)
        .on::<api::Decrypt>(cipher::decrypt)
        .on::<api::CreateKey>(keys::create)
        .on::<api::LoadKey>(keys::load)
        .on::<api::MoveKey>(keys::rename)
        .on::<api::DeleteKey>(keys::delete)
        .on::<api::Derive>(keys::derive)
        .on::<api::ExportDerived>(keys::export)
        .on::<api::CreateKeyPair>(pairs::create)
        .on::<api::LoadKeyPair>(pairs::load)
        .on::<api::MoveKeyPair>(pairs::rename)
        .on::<api::DeleteKeyPair>(pairs::delete)
        .on::<api::PublicParameter>(pairs::parameter)
}
