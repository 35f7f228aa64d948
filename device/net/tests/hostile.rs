//! What the network may do to HTTPS, provisioning and registry, against doubles on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: its helpers fail as its tests do"
)]

#[expect(dead_code, reason = "each test program uses a part of the doubles")]
mod doubles;

use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use contract::bytes::Secret;
use contract::names::{DeviceId, ModuleId, RegistrationId};
use doubles::{Authority, Double, goodbye, http_reply, http_request, soon};
use net::dps::{Dps, DpsError, HubRule, Limits};
use net::https::{Https, HttpsError, Method, Reply, Request};
use net::registry::{Registry, RegistryError};
use net::tls::{Client, Credentials, Roots, Server, Target, TlsError};
use net::token::{Owner, Source};

fn tokens(owner: Owner) -> Source {
    Source::new(owner, 30, |_: &[u8]| Ok([7; 32]), || Some(1_800_000_000))
}

#[test]
fn a70_a_peer_with_the_wrong_name_root_or_time_is_refused() {
    let ours = Authority::new("ours");
    let other = Authority::new("other");
    for (leaf, wanted, why) in [
        (ours.leaf("hub.test"), "hub.test", None),
        (ours.leaf("evil.test"), "hub.test", Some("NotValidForName")),
        (other.leaf("hub.test"), "hub.test", Some("UnknownIssuer")),
        (
            ours.leaf_between("hub.test", 2001, 2002),
            "hub.test",
            Some("Expired"),
        ),
        (
            ours.leaf_between("hub.test", 2080, 2090),
            "hub.test",
            Some("NotValidYet"),
        ),
    ] {
        let double = Double::tls(&leaf, 1, |_, peer| {
            let _ = peer.read(&mut [0; 1]);
        });
        let result = ours.client().connect(&double.target(wanted), soon());
        match (result, why) {
            (Ok(stream), None) => stream.close().unwrap(),
            (Err(TlsError::Refused { cause, .. }), Some(why)) => {
                assert!(format!("{cause:?}").contains(why), "{cause:?}");
            }
            (result, why) => panic!("{result:?} instead of {why:?}"),
        }
        double.join();
    }
}

#[test]
fn a70_an_old_protocol_or_no_tls_at_all_is_refused() {
    let ours = Authority::new("ours");
    // A TLS 1.1 server hello, then nothing; a plain HTTP server; garbage.
    let hello: &[u8] = &[
        22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
        7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0xc0, 0x13, 0,
    ];
    for bytes in [hello, b"HTTP/1.1 200 OK\r\n\r\n", &[0xff; 64]] {
        let double = Double::tcp(1, move |_, mut tcp| {
            let _ = tcp.read(&mut [0; 512]);
            let _ = tcp.write_all(bytes);
        });
        let result = ours.client().connect(&double.target("hub.test"), soon());
        assert!(
            matches!(result, Err(TlsError::Refused { .. })),
            "{result:?}"
        );
        double.join();
    }
}

#[test]
fn a70_a_truncated_connection_is_no_end() {
    let ours = Authority::new("ours");
    for orderly in [true, false] {
        let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
            peer.write_all(b"half").unwrap();
            peer.flush().unwrap();
            if orderly {
                goodbye(peer);
            }
        });
        let mut stream = ours
            .client()
            .connect(&double.target("hub.test"), soon())
            .unwrap();
        let mut text = Vec::new();
        let end = stream.read_to_end(&mut text);
        assert_eq!(text, b"half");
        assert_eq!(end.is_ok(), orderly, "{end:?}");
        double.join();
    }
}

#[test]
fn a_silent_peer_costs_a_deadline_in_handshake_and_after() {
    let ours = Authority::new("ours");
    let (done, wait) = mpsc::channel::<()>();
    let double = Double::tcp(1, move |_, _tcp| {
        let _ = wait.recv();
    });
    let deadline = std::time::Instant::now() + Duration::from_millis(50);
    let result = ours.client().connect(&double.target("hub.test"), deadline);
    assert!(
        matches!(&result, Err(TlsError::Handshake { cause, .. }) if cause.kind() == ErrorKind::TimedOut),
        "{result:?}"
    );
    drop(done);
    double.join();

    let (done, wait) = mpsc::channel::<()>();
    let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
        let _ = wait.recv();
        peer.write_all(b"late").unwrap();
        goodbye(peer);
    });
    let mut stream = ours
        .client()
        .connect(&double.target("hub.test"), soon())
        .unwrap();
    stream.set_deadline(std::time::Instant::now() + Duration::from_millis(20));
    let mut buffer = [0; 16];
    assert_eq!(
        stream.read(&mut buffer).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    drop(done);
    stream.set_deadline(soon());
    assert_eq!(
        stream.read(&mut buffer).unwrap(),
        4,
        "a read may be repeated"
    );
    double.join();
}

#[test]
fn a78_bundles_are_bounded_and_hold_certificates_only() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf("m");
    let many = |n: usize| ca.pem.repeat(n).into_bytes();
    assert!(
        Roots::from_pem(ca.pem.replace('\n', "\r\n").as_bytes()).is_ok(),
        "CRLF"
    );
    assert!(Roots::from_pem(&many(64)).is_ok());
    assert!(matches!(
        Roots::from_pem(&many(65)),
        Err(TlsError::BundleTooLarge {
            unit: "certificates",
            found: 65,
            limit: 64
        })
    ));
    let mut big = ca.pem.clone().into_bytes();
    big.resize(256 * 1024 + 1, b'\n');
    assert!(matches!(
        Roots::from_pem(&big),
        Err(TlsError::BundleTooLarge { unit: "bytes", .. })
    ));
    let mixed = format!("{}{}", ca.pem, leaf.key);
    assert!(matches!(
        Roots::from_pem(mixed.as_bytes()),
        Err(TlsError::BundleContent(_))
    ));
    assert!(matches!(
        Roots::from_pem(b"hello"),
        Err(TlsError::BundleEmpty)
    ));
    let cut = &ca.pem.as_bytes()[..ca.pem.len() / 2];
    assert!(Roots::from_pem(cut).is_err());
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(
        Roots::from_pem(junk.as_bytes()),
        Err(TlsError::BadRoot { index: 1, .. })
    ));
    let swapped = Credentials::from_pem(leaf.chain.as_bytes(), ca.leaf("n").key.as_bytes());
    assert!(
        Client::with_credentials(&ca.roots(), swapped.unwrap()).is_err(),
        "another's key"
    );
}

#[test]
fn two_modules_speak_mutual_tls_and_a_stranger_does_not() {
    let ca = Authority::new("edge-ca");
    let stranger = Authority::new("stranger");
    let credentials = |leaf: &doubles::Leaf| {
        Credentials::from_pem(leaf.chain.as_bytes(), leaf.key.as_bytes()).unwrap()
    };
    let server = Server::mutual(&ca.roots(), credentials(&ca.leaf("pump"))).unwrap();
    let (tell, told) = mpsc::channel();
    let double = Double::tcp(3, move |_, tcp| {
        let result = server.accept(tcp, soon()).map(|mut stream| {
            assert!(stream.peer_certificate().is_some());
            stream
                .write_all(b"hello")
                .and_then(|()| stream.flush())
                .unwrap();
            stream.close().unwrap();
        });
        tell.send(result.is_ok()).unwrap();
    });
    let target = double.target("pump");
    let friend = Client::with_credentials(&ca.roots(), credentials(&ca.leaf("sensor"))).unwrap();
    let mut stream = friend.connect(&target, soon()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert!(told.recv().unwrap());
    let foreign =
        Client::with_credentials(&ca.roots(), credentials(&stranger.leaf("sensor"))).unwrap();
    for client in [ca.client(), foreign] {
        // With TLS 1.3 the client may learn of its refusal only when it reads.
        let got = client
            .connect(&target, soon())
            .map(|mut s| s.read(&mut [0; 8]));
        assert!(!matches!(got, Ok(Ok(1..))), "{got:?}");
        assert!(!told.recv().unwrap());
    }
    double.join();
}

/// One request against a server that answers with these bytes.
fn answered_with(bytes: Vec<u8>, orderly: bool) -> Result<Reply, HttpsError> {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
        http_request(peer);
        // The client may hang up at any byte of a reply it does not like.
        let _ = peer.write_all(&bytes).and_then(|()| peer.flush());
        if orderly {
            goodbye(peer);
        }
    });
    let https = Https::new(ours.client(), double.target("hub.test"));
    let reply = https.call(&Request::new(Method::Get, "/x"));
    double.join();
    reply
}

#[test]
fn replies_are_read_by_length_by_chunks_and_by_an_orderly_end() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRetry-After: 9\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRetry-After: 9\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nRetry-After: 9\r\n\r\n{}",
    ] {
        let reply = answered_with(text.as_bytes().to_vec(), true).unwrap();
        assert_eq!((reply.status, &reply.body[..]), (200, &b"{}"[..]));
        assert_eq!(reply.retry_after, Some(Duration::from_secs(9)));
        assert!(reply.is_json());
    }
    let redirect =
        "HTTP/1.1 302 Found\r\nLocation: https://evil.test/\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        answered_with(redirect.as_bytes().to_vec(), true)
            .unwrap()
            .status,
        302
    );
}

#[test]
fn a67_oversized_and_broken_replies_are_bounded_errors() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let headers = |n: usize| format!("{ok}{}\r\n", "a: b\r\n".repeat(n)).into_bytes();
    let body = |n: usize| {
        let mut bytes = format!("{ok}Content-Length: {n}\r\n\r\n").into_bytes();
        bytes.resize(bytes.len() + n, b'x');
        bytes
    };
    let limit = 4 * 1024 * 1024;
    assert_eq!(answered_with(body(limit), true).unwrap().body.len(), limit);
    let too_large = |r: &Result<Reply, HttpsError>, part: &str| matches!(r, Err(HttpsError::TooLarge { what, .. }) if *what == part);
    let result = answered_with(body(limit + 1), true);
    assert!(too_large(&result, "body"), "{result:?}");
    assert!(answered_with(headers(64), true).is_ok());
    let result = answered_with(headers(65), true);
    assert!(too_large(&result, "headers"), "{result:?}");
    let long = format!("{ok}a: {}\r\n\r\n", "b".repeat(17 * 1024)).into_bytes();
    let result = answered_with(long, true);
    assert!(result.is_err(), "{result:?}");

    for (bytes, orderly) in [
        ("", true),
        ("HTTP/1.1 200 OK\r\nContent-Le", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\ncut off without a goodbye", false),
        ("SSH-2.0-OpenSSH_9\r\n", true),
        ("HTTP/1.1 99999 OK\r\n\r\n", true),
    ] {
        let result = answered_with(bytes.as_bytes().to_vec(), orderly);
        assert!(
            matches!(
                result,
                Err(HttpsError::Broken { .. } | HttpsError::Protocol { .. })
            ),
            "{bytes:?}: {result:?}"
        );
    }
}

#[test]
fn a67_a_never_ending_reply_ends_at_the_limit_or_the_deadline() {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("hub.test"), 1, |_, peer| {
        http_request(peer);
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
        while peer.write_all(&chunk).is_ok() {}
    });
    let https = Https::new(ours.client(), double.target("hub.test"));
    let result = https.call(&Request::new(Method::Get, "/x"));
    assert!(
        matches!(result, Err(HttpsError::TooLarge { what: "body", .. })),
        "{result:?}"
    );
    double.join();

    let (done, wait) = mpsc::channel::<()>();
    let double = Double::tls(&ours.leaf("hub.test"), 1, move |_, peer| {
        http_request(peer);
        peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
            .unwrap();
        peer.flush().unwrap();
        let _ = wait.recv();
    });
    let https = Https::with_deadline(
        ours.client(),
        double.target("hub.test"),
        Duration::from_millis(200),
    );
    let result = https.call(&Request::new(Method::Get, "/x"));
    assert!(
        matches!(result, Err(HttpsError::Deadline { .. })),
        "{result:?}"
    );
    drop(done);
    double.join();
}

#[test]
fn a_refused_peer_is_reported_with_its_reason() {
    let ours = Authority::new("ours");
    let double = Double::tls(&Authority::new("other").leaf("hub.test"), 1, |_, _| {});
    let https = Https::new(ours.client(), double.target("hub.test"));
    let result = https.call(&Request::new(Method::Get, "/x"));
    assert!(
        matches!(
            &result,
            Err(HttpsError::Connect {
                cause: TlsError::Refused { .. },
                ..
            })
        ),
        "{result:?}"
    );
    double.join();
    let nobody = Target::parse("127.0.0.1:1", 443).unwrap();
    let result = Https::new(ours.client(), nobody).call(&Request::new(Method::Get, "/x"));
    assert!(
        matches!(
            &result,
            Err(HttpsError::Connect {
                cause: TlsError::Connect { .. },
                ..
            })
        ),
        "{result:?}"
    );
}

fn dps(ours: &Authority, double: &Double) -> Dps {
    let owner = Owner::Registration {
        scope: "0ne1".into(),
        registration: "dev-1".into(),
    };
    Dps::new(
        Https::new(ours.client(), double.target("dps.test")),
        "0ne1",
        RegistrationId::new("dev-1").unwrap(),
        Some(serde_json::json!({"model": 7})),
        tokens(owner),
    )
    .unwrap()
}

#[test]
fn a_device_registers_and_learns_its_hub() {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("dps.test"), 4, |at, peer| {
        let (head, body) = http_request(peer);
        let token = "authorization: SharedAccessSignature sr=0ne1%2Fregistrations%2Fdev-1&sig=";
        assert!(
            head.to_ascii_lowercase()
                .contains(&token.to_ascii_lowercase()),
            "{head}"
        );
        assert!(head.contains("&skn=registration\r\n"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("user-agent"), "{head}");
        let assigning = r#"{"operationId":"4.x","status":"assigning"}"#;
        if at < 2 {
            assert!(
                head.starts_with("PUT /0ne1/registrations/dev-1/register?api-version=2021-06-01 "),
                "{head}"
            );
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                body,
                serde_json::json!({"registrationId": "dev-1", "payload": {"model": 7}})
            );
        } else {
            let path = "GET /0ne1/registrations/dev-1/operations/4.x?api-version=2021-06-01 ";
            assert!(head.starts_with(path), "{head}");
        }
        match at {
            0 => http_reply(peer, "503 Later", "", ""),
            1 => http_reply(peer, "202 Accepted", "Retry-After: 3\r\n", assigning),
            2 => http_reply(peer, "202 Accepted", "", assigning),
            _ => http_reply(
                peer,
                "200 OK",
                "",
                r#"{"operationId":"4.x","status":"assigned","registrationState":
                    {"registrationId":"dev-1","assignedHub":"hub.test:8443","deviceId":"dev-1"}}"#,
            ),
        }
    });
    let mut waits = Vec::new();
    let assigned = dps(&ours, &double)
        .register(
            HubRule::new(["hub.test".into()]),
            Limits::default(),
            &mut |span| {
                waits.push(span);
                true
            },
        )
        .unwrap();
    assert_eq!(
        (assigned.hub.as_str(), assigned.device.as_str()),
        ("hub.test:8443", "dev-1")
    );
    assert_eq!(waits.len(), 3);
    assert_eq!(waits[1], Duration::from_secs(3), "as the server asked");
    double.join();
}

#[test]
fn a72_a_foreign_hub_and_a67_a_web_page_end_the_registration() {
    let ours = Authority::new("ours");
    for (text, foreign) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"status\":\"assigned\",\
             \"registrationState\":{\"assignedHub\":\"hub.evil.test\",\"deviceId\":\"d\"}}",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>portal</p>",
            false,
        ),
    ] {
        let double = Double::tls(&ours.leaf("dps.test"), 1, move |_, peer| {
            http_request(peer);
            peer.write_all(text.as_bytes()).unwrap();
            goodbye(peer);
        });
        let result = dps(&ours, &double).register(
            HubRule::new([".hubs.test".into()]),
            Limits::default(),
            &mut |_| panic!("nothing to wait for"),
        );
        assert_eq!(
            matches!(result, Err(DpsError::ForeignHub(_))),
            foreign,
            "{result:?}"
        );
        assert_eq!(
            matches!(result, Err(DpsError::Malformed(_))),
            !foreign,
            "{result:?}"
        );
        double.join();
    }
}

#[test]
fn a_stopped_wait_ends_the_registration() {
    let ours = Authority::new("ours");
    let double = Double::tls(&ours.leaf("dps.test"), 1, |_, peer| {
        http_request(peer);
        http_reply(peer, "429 Too Many", "Retry-After: 0\r\n", "");
    });
    let result = dps(&ours, &double).register(HubRule::new([]), Limits::default(), &mut |_| false);
    assert!(matches!(result, Err(DpsError::Stopped)), "{result:?}");
    double.join();
}

#[test]
fn module_identities_are_created_listed_and_removed() {
    let ours = Authority::new("ours");
    let module = r#"{"moduleId":"$edgeAgent","deviceId":"dev:1","generationId":"638"}"#;
    let double = Double::tls(&ours.leaf("hub.test"), 6, move |at, peer| {
        let (head, body) = http_request(peer);
        let path = "/devices/dev%3A1/modules/%24edgeAgent?api-version=2017-11-08-preview HTTP/1.1";
        let line = head.lines().next().unwrap().to_owned();
        let any = head.to_ascii_lowercase().contains("if-match: *\r\n");
        match at {
            0 | 1 => {
                assert_eq!(line, format!("PUT {path}"));
                assert_eq!(any, at == 1, "{head}");
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let keys = serde_json::json!({"type": "sas", "symmetricKey":
                    {"primaryKey": "AQEB", "secondaryKey": "AgIC"}});
                assert_eq!(body.get("authentication"), (at == 1).then_some(&keys));
                http_reply(peer, "200 OK", "", module);
            }
            2 => http_reply(peer, "200 OK", "", &format!("[{module}]")),
            3 => {
                assert_eq!(line, format!("DELETE {path}"));
                assert!(any, "{head}");
                peer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                goodbye(peer);
            }
            4 => {
                let gone = r#"{"Message":"ErrorCode:ModuleNotFound;gone","ExceptionMessage":"x"}"#;
                http_reply(peer, "404 Not Found", "", gone);
            }
            _ => http_reply(peer, "200 OK", "", &module.replace("dev:1", "dev:2")),
        }
    });
    let registry = Registry::new(
        Https::new(ours.client(), double.target("hub.test")),
        DeviceId::new("dev:1").unwrap(),
        tokens(Owner::Device {
            hub: "hub.test".into(),
            device: "dev:1".into(),
        }),
    );
    let agent = ModuleId::new("$edgeAgent").unwrap();
    let key = |n: u8| Secret::new(vec![n; 3]);
    let created = registry.create(&agent, &key(1), &key(2)).unwrap();
    assert_eq!(created.generation_id.unwrap().as_str(), "638");
    assert_eq!(registry.list().unwrap().len(), 1);
    registry.delete(&agent).unwrap();
    let error = registry.get(&agent).unwrap_err();
    assert!(
        matches!(&error, RegistryError::Hub { status: 404, .. }),
        "{error:?}"
    );
    assert!(!error.is_offline());
    let error = registry.get(&agent).unwrap_err();
    assert!(
        matches!(error, RegistryError::Malformed(_)),
        "another device's module: {error:?}"
    );
    double.join();
    let error = registry.get(&agent).unwrap_err();
    assert!(error.is_offline(), "{error:?}");
}
