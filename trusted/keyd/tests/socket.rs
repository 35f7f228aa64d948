//! The daemon behind a real socket, called by our own client as whoever runs the test.
#![expect(clippy::disallowed_methods, reason = "tests clean up after themselves")]

mod world;

use std::sync::Arc;

use contract::api::key as api;
use contract::bytes::Bytes;
use contract::names::KeyId;
use local::client::{CallError, Client};
use local::peer::{KernelFacts, Require};
use local::server::{Limits, Listener, Server};
use world::World;

#[test]
fn a_key_is_created_used_and_deleted_over_the_socket() {
    let uid = local::files::own_uid();
    let policy = format!(
        "root_may_use_keys = true\n[[principal]]\nuid = {uid}\nkeys = ['*']\n[[principal]]\nuid = 4000000\nkeys = ['*']\n"
    );
    let (keyd, home) = World::new(&policy).into_keyd();
    let path = home.join("keyd.sock");
    let server = Server::new(KernelFacts::probe(), Require::Best).unwrap();
    let routes = Arc::new(keyd::api::routes(Arc::new(keyd)));
    let listener = Listener::bind(&path, 0o660).unwrap();
    let socket = server.open(listener, routes, Limits::default()).unwrap();
    server.start().unwrap();

    let client = Client::new(&path);
    let key_id = KeyId::new("module/a:1").unwrap();
    let create = api::CreateKeyRequest {
        key_id: key_id.clone(),
        usage: api::Usage::try_from("derive,sign".to_owned()).unwrap(),
        key_bytes: None,
    };
    let made = client
        .call::<api::CreateKey>(&(), &create)
        .unwrap()
        .key_handle;
    let loaded = client
        .call::<api::LoadKey>(&key_id, &contract::endpoint::Empty)
        .unwrap();
    assert_eq!(loaded.key_handle, made);
    let sign = api::SignRequest {
        key_handle: made.clone(),
        algorithm: api::SignAlgorithm::HmacSha256,
        parameters: api::SignParameters::Message(Bytes(b"message".to_vec())),
    };
    let signed = client.call::<api::Sign>(&(), &sign).unwrap();
    assert_eq!(signed.signature.0.len(), 32);
    let delete = api::HandleRequest { key_handle: made };
    client.call::<api::DeleteKey>(&(), &delete).unwrap();
    match client.call::<api::Sign>(&(), &sign) {
        Err(CallError::Refused {
            status: 400,
            message,
        }) => {
            assert!(message.ends_with("invalid handle"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    server.close(socket);
    // The serving thread removes its socket about now, which a removal under way may stumble over.
    while home.exists() {
        let _ = std::fs::remove_dir_all(&home);
    }
}
