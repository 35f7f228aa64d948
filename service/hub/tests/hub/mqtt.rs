//! Connections, telemetry, twins and methods over MQTT.

use serde_json::json;

use crate::world::{HOST, World, sign, token};

#[test]
fn connect_is_answered_by_what_is_wrong() {
    let world = World::new();
    let key = world.device("d", true);
    let module = world.module("d", "m");
    let good = token("d", &key);
    let user = format!("{HOST}/d/?api-version=2021-04-12");
    let connect = |client: &str, user: &str, token: &str| {
        world.mqtt_as(client, user, token, true, None).connack
    };
    assert_eq!(connect("d", &user, &good), [0, 0]);
    assert_eq!(
        connect("d", &user.replace("/?", "/"), &good),
        [0, 0],
        "older clients"
    );
    assert_eq!(
        connect("d", &user.to_uppercase().replace("/D/", "/d/"), &good)[1],
        5,
        "api-version"
    );
    assert_eq!(
        connect("other", &user, &good),
        [0, 2],
        "client id and user name differ"
    );
    assert_eq!(
        connect("d/m", &format!("{HOST}/d/m/?api-version=2021-04-12"), &good),
        [0, 5]
    );
    assert_eq!(connect("d", &user, ""), [0, 5]);
    assert_eq!(
        connect("d", &user, &token("d", &module)),
        [0, 5],
        "another key"
    );
    assert_eq!(
        connect("d", &user, &sign(&format!("{HOST}/devices/e"), &key, "")),
        [0, 5]
    );
    assert_eq!(
        connect("e", &user.replace("/d/", "/e/"), &good),
        [0, 5],
        "unknown device"
    );
    assert_eq!(connect("d", "nonsense", &good), [0, 5]);
    let twice = sign(&format!("{HOST}%2Fdevices%2Fd%2Fmodules%2Fm"), &module, "");
    assert_eq!(world.mqtt("d/m", &twice, true).connack, [0, 0]);
    // The device policy acts as any device, others do not.
    assert_eq!(connect("d", &user, &world.policy("device")), [0, 0]);
    assert_eq!(connect("d", &user, &world.policy("service")), [0, 5]);
    // A disabled device takes its modules along.
    let any = [("If-Match", "*")];
    let body = json!({"status": "disabled"}).to_string();
    let path = "/devices/d";
    assert_eq!(
        world
            .call_with("PUT", path, &world.owner(), &any, Some(&body))
            .status,
        200
    );
    assert_eq!(connect("d", &user, &good), [0, 5]);
    assert_eq!(world.mqtt("d/m", &twice, true).connack, [0, 5]);
}

#[test]
fn telemetry_is_acknowledged_when_it_is_stored() {
    let mut world = World::new();
    let key = world.device("d", true);
    let module = world.module("d", "m");
    let mut device = world.mqtt("d", &token("d", &key), true);
    let topic = "devices/d/messages/events/%24.ct=application%2Fjson&a=b%20c&flag\
        &iothub-connection-device-id=evil";
    device.publish(topic, b"{\"t\":1}", Some(7));
    assert_eq!(device.receive(), Some((0x40, vec![0, 7])));
    let mut other = world.mqtt("d/m", &token("d/modules/m", &module), true);
    for id in 1..=200_u16 {
        other.publish(
            "devices/d/modules/m/messages/events/%24.on=out",
            b"x",
            Some(id),
        );
    }
    for id in 1..=200_u16 {
        assert_eq!(
            other.receive(),
            Some((0x40, id.to_be_bytes().to_vec())),
            "in order"
        );
    }
    // What was acknowledged is there after the hub was gone.
    world.restart();
    let events = world
        .call(
            "GET",
            "/messages/events?after=0&max=1000",
            &world.owner(),
            None,
        )
        .body;
    let events = events.as_array().unwrap();
    assert_eq!(events.len(), 201);
    let first = &events[0];
    assert_eq!(first["properties"], json!({"a": "b c", "flag": null}));
    assert_eq!(first["systemProperties"]["contentType"], "application/json");
    assert_eq!(
        first["systemProperties"]["iothub-connection-device-id"],
        "d"
    );
    assert_eq!(first["body"], "eyJ0IjoxfQ==");
    assert_eq!(
        (&first["deviceId"], &first["moduleId"]),
        (&json!("d"), &json!(null))
    );
    assert_eq!(events[1]["moduleId"], "m");
    assert_eq!(events[1]["systemProperties"]["outputName"], "out");
    assert_eq!(
        events[1]["systemProperties"]["iothub-connection-module-id"],
        "m"
    );
    let after = first["seq"].as_i64().unwrap() + 199;
    let path = format!("/messages/events?after={after}");
    let rest = world.call("GET", &path, &world.owner(), None).body;
    assert_eq!(rest.as_array().map(Vec::len), Some(1));
}

#[test]
fn a129_a_topic_of_another_identity_ends_the_connection() {
    let world = World::new();
    let key = world.device("d", true);
    world.device("e", false);
    let token = token("d", &key);
    for topic in [
        "devices/e/messages/events/",
        "devices/d/modules/$edgeAgent/messages/events/",
        "$iothub/twin/PATCH/properties/desired/?$rid=1",
        "anything",
    ] {
        let mut client = world.mqtt("d", &token, true);
        client.publish(topic, b"{}", Some(1));
        assert_eq!(client.receive(), None, "{topic}");
    }
    let mut client = world.mqtt("d", &token, true);
    for filter in [
        "devices/e/messages/devicebound/#",
        "#",
        "$iothub/#",
        "devices/+/#",
    ] {
        assert_eq!(client.subscribe(filter), 0x80, "{filter}");
    }
    for (what, kind, body) in [
        (
            "QoS 2",
            0x34,
            b"\x00\x19devices/d/messages/events\x00\x01".as_slice(),
        ),
        (
            "a second CONNECT",
            0x10,
            b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01d".as_slice(),
        ),
        ("a packet of a server", 0xd0, b"".as_slice()),
    ] {
        let mut client = world.mqtt("d", &token, true);
        client.send(kind, body);
        assert_eq!(client.receive(), None, "{what}");
    }
    let events = world
        .call("GET", "/messages/events", &world.owner(), None)
        .body;
    assert_eq!(events, json!([]), "nothing was stored");
}

#[test]
fn a_twin_is_read_reported_and_its_changes_told_in_order() {
    let world = World::new();
    let key = world.device("d", false);
    let owner = world.owner();
    let mut client = world.mqtt("d", &token("d", &key), false);
    assert_eq!(client.connack, [0, 0]);
    assert_eq!(client.subscribe("$iothub/twin/res/#"), 1);
    client.publish("$iothub/twin/GET/?$rid=a%20b", b"", None);
    assert_eq!(
        client.message(),
        (
            "$iothub/twin/res/200/?$rid=a%20b".into(),
            json!({"desired": {"$version": 1}, "reported": {"$version": 1}})
        )
    );
    let report = "$iothub/twin/PATCH/properties/reported/?$rid=";
    client.publish(
        &format!("{report}1"),
        b"{\"a\":{\"b\":1},\"$version\":9}",
        Some(3),
    );
    assert_eq!(client.receive(), Some((0x40, vec![0, 3])));
    assert_eq!(
        client.message(),
        (
            "$iothub/twin/res/204/?$rid=1&$version=2".into(),
            json!(null)
        )
    );
    for (rid, bad) in [
        ("2", "{"),
        ("3", "{\"a\":1,\"a\":2}"),
        ("4", "{\"a.b\":1}"),
        ("5", "[]"),
    ] {
        client.publish(&format!("{report}{rid}"), bad.as_bytes(), None);
        let (topic, body) = client.message();
        assert_eq!(topic, format!("$iothub/twin/res/400/?$rid={rid}"));
        assert!(body["Message"].is_string());
    }
    // Not subscribed: nothing is told. The answer to a ping comes next.
    let patch = |n: i64| json!({"properties": {"desired": {"n": n}}});
    assert_eq!(
        world
            .call("PATCH", "/twins/d", &owner, Some(&patch(0)))
            .status,
        200
    );
    client.send(0xc0, b"");
    assert_eq!(client.receive(), Some((0xd0, vec![])));
    assert_eq!(
        client.subscribe("$iothub/twin/PATCH/properties/desired/#"),
        1
    );
    for n in 1..=20 {
        assert_eq!(
            world
                .call("PATCH", "/twins/d", &owner, Some(&patch(n)))
                .status,
            200
        );
    }
    for n in 1..=20 {
        let version = n + 2;
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
        assert_eq!(
            client.message(),
            (topic, json!({"n": n, "$version": version}))
        );
    }
    let replace = json!({"properties": {"desired": {"other": 1}}});
    assert_eq!(
        world.call("PUT", "/twins/d", &owner, Some(&replace)).status,
        200
    );
    assert_eq!(
        client.message().1,
        json!({"n": null, "other": 1, "$version": 23})
    );
    client.disconnect();
    // The session remembers the subscriptions, until it is cleaned.
    let mut client = world.mqtt("d", &token("d", &key), false);
    assert_eq!(client.connack, [1, 0]);
    assert_eq!(
        world
            .call("PATCH", "/twins/d", &owner, Some(&patch(9)))
            .status,
        200
    );
    assert_eq!(client.message().1, json!({"n": 9, "$version": 24}));
    client.disconnect();
    assert_eq!(world.mqtt("d", &token("d", &key), true).connack, [0, 0]);
    let mut client = world.mqtt("d", &token("d", &key), false);
    assert_eq!(client.connack, [0, 0]);
    client.publish("$iothub/twin/GET/?$rid=1", b"", None);
    client.send(0xc0, b"");
    assert_eq!(
        client.receive(),
        Some((0xd0, vec![])),
        "no filter, no answer"
    );
}

#[test]
fn a_second_connection_takes_over_and_a_new_key_ends_the_old_one() {
    let world = World::new();
    let key = world.device("d", false);
    let token = token("d", &key);
    let mut first = world.mqtt("d", &token, true);
    let mut second = world.mqtt("d", &token, true);
    assert_eq!(first.receive(), None);
    second.send(0xc0, b"");
    assert_eq!(second.receive(), Some((0xd0, vec![])));
    let state = |device: &serde_json::Value| device["connectionState"].clone();
    assert_eq!(
        state(&world.call("GET", "/devices/d", &world.owner(), None).body),
        "Connected"
    );
    let keys = json!({"authentication": {"type": "sas", "symmetricKey": {
        "primaryKey": "QUFBQUFBQUFBQUFBQUFBQQ==", "secondaryKey": "QkJCQkJCQkJCQkJCQkJCQg=="}}});
    let any = [("If-Match", "*")];
    let text = keys.to_string();
    assert_eq!(
        world
            .call_with("PUT", "/devices/d", &world.owner(), &any, Some(&text))
            .status,
        200
    );
    assert_eq!(second.receive(), None);
    assert_eq!(world.mqtt("d", &token, true).connack, [0, 5]);
}

#[test]
fn a76_a_token_that_ends_closes_its_connection() {
    let world = World::new();
    let key = world.device("d", false);
    // Two seconds before the end of its leeway: still good for a CONNECT.
    let expiry = crate::world::now() - 298;
    let resource = format!("{HOST}/devices/d");
    let signature = key.sign(format!("{resource}\n{expiry}").as_bytes());
    let signature = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, signature);
    let token = format!(
        "SharedAccessSignature sr={resource}&sig={}&se={expiry}",
        contract::sas::encode(&signature)
    );
    let mut client = world.mqtt("d", &token, true);
    assert_eq!(client.connack, [0, 0]);
    assert_eq!(client.receive(), None);
    let late = token.replace(&expiry.to_string(), &(expiry - 10).to_string());
    assert_eq!(world.mqtt("d", &late, true).connack, [0, 5]);
}

#[test]
fn a_will_is_sent_when_the_connection_breaks() {
    let world = World::new();
    let key = world.device("d", false);
    let token = token("d", &key);
    let user = format!("{HOST}/d/?api-version=2021-04-12");
    let will = Some(("devices/d/messages/events/a=1", b"gone".as_slice()));
    world.mqtt_as("d", &user, &token, true, will).disconnect();
    let foreign = Some(("devices/e/messages/events/a=1", b"gone".as_slice()));
    assert_eq!(
        world.mqtt_as("d", &user, &token, true, foreign).connack,
        [0, 2]
    );
    drop(world.mqtt_as("d", &user, &token, true, will));
    // The hub notices the end on its own time: ask until the message is there.
    let events = loop {
        let events = world
            .call("GET", "/messages/events", &world.owner(), None)
            .body;
        if events != json!([]) {
            break events;
        }
        std::thread::yield_now();
    };
    assert_eq!(
        events.as_array().map(Vec::len),
        Some(1),
        "none after DISCONNECT"
    );
    assert_eq!(events[0]["systemProperties"]["iothub-MessageType"], "Will");
    assert_eq!(events[0]["properties"], json!({"a": "1"}));
}

#[test]
fn a_direct_method_is_answered_by_the_device() {
    let world = World::new();
    let key = world.device("d", false);
    let owner = world.owner();
    let body = json!({"methodName": "do it", "payload": {"a": 1}, "responseTimeoutInSeconds": 30});
    let offline = world.call("POST", "/twins/d/methods", &owner, Some(&body));
    assert_eq!((offline.status, offline.error()), (404, "DeviceNotOnline"));
    let mut client = world.mqtt("d", &token("d", &key), true);
    let deaf = world.call("POST", "/twins/d/methods", &owner, Some(&body));
    assert_eq!((deaf.status, deaf.error()), (404, "DeviceNotOnline"));
    assert_eq!(client.subscribe("$iothub/methods/POST/#"), 1);
    let answer = std::thread::scope(|scope| {
        let caller = scope.spawn(|| world.call("POST", "/twins/d/methods", &owner, Some(&body)));
        let (topic, payload) = client.message();
        assert_eq!(payload, json!({"a": 1}));
        let rid = topic
            .strip_prefix("$iothub/methods/POST/do%20it/?$rid=")
            .unwrap();
        client.publish("$iothub/methods/res/200/?$rid=99999", b"\"late\"", None);
        client.publish(
            &format!("$iothub/methods/res/207/?$rid={rid}"),
            b"{\"b\":2}",
            None,
        );
        caller.join().unwrap()
    });
    assert_eq!(
        (answer.status, answer.body),
        (200, json!({"status": 207, "payload": {"b": 2}}))
    );
}

#[test]
fn a_deployment_is_told_to_the_connected_agent_version_by_version() {
    let world = World::new();
    world.device("d", true);
    let owner = world.owner();
    // The agent has no credential until someone writes keys.
    let path = "/devices/d/modules/$edgeAgent";
    let agent = world.call("GET", path, &owner, None).body;
    assert_eq!(agent["authentication"]["type"], "none");
    let body = json!({"authentication": {"type": "sas"}}).to_string();
    let made = world.call_with("PUT", path, &owner, &[("If-Match", "*")], Some(&body));
    assert_eq!(made.body["generationId"], agent["generationId"]);
    let key = crate::world::primary(&made.body);
    let twice = sign(
        &format!("{HOST}%2Fdevices%2Fd%2Fmodules%2F%2524edgeAgent"),
        &key,
        "",
    );
    let mut client = world.mqtt("d/$edgeAgent", &twice, false);
    assert_eq!(client.connack, [0, 0]);
    assert_eq!(
        client.subscribe("$iothub/twin/PATCH/properties/desired/#"),
        1
    );
    for (n, version) in [(1, 2), (2, 3)] {
        let content = json!({"modulesContent": {"$edgeAgent": {"properties.desired": {"n": n}}}});
        let path = "/devices/d/applyConfigurationContent";
        assert_eq!(world.call("POST", path, &owner, Some(&content)).status, 204);
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
        assert_eq!(
            client.message(),
            (topic, json!({"n": n, "$version": version}))
        );
    }
    // A device that is deleted takes the connections of its modules along.
    assert_eq!(world.call("DELETE", "/devices/d", &owner, None).status, 204);
    assert_eq!(client.receive(), None);
}
