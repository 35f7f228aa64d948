//! Registry, provisioning, twins and their refusals over HTTPS.

use contract::sas::SasKey;
use serde_json::{Value, json};

use crate::world::{HOST, World, primary, sign, token};

fn registration_token(world: &World, registration: &str, key: &SasKey) -> String {
    let resource = format!("{}/registrations/{registration}", world.scope).to_lowercase();
    sign(&resource, key, "&skn=registration")
}

/// Registers as the identity daemon does, and gives the registration state.
fn register(world: &World, registration: &str, key: &SasKey) -> Value {
    let token = registration_token(world, registration, key);
    let path = format!("/{}/registrations/{registration}", world.scope);
    let body = json!({"registrationId": registration});
    let answer = world.call("PUT", &format!("{path}/register"), &token, Some(&body));
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.body["status"], "assigning");
    assert!(answer.headers["retry-after"].parse::<u32>().is_ok());
    let operation = answer.body["operationId"].as_str().unwrap();
    let poll = format!("{path}/operations/{operation}");
    assert!(answer.headers["location"].ends_with(operation));
    let answer = world.call("GET", &poll, &token, None);
    assert_eq!(
        (answer.status, &answer.body["status"]),
        (200, &json!("assigned")),
        "{answer:?}"
    );
    let state = answer.body["registrationState"].clone();
    let again = world.call("POST", &path, &token, Some(&body));
    assert_eq!((again.status, &again.body), (200, &state));
    state
}

fn put_group(world: &World, id: &str, more: &Value) -> SasKey {
    let mut body = json!({"enrollmentGroupId": id, "attestation": {"type": "symmetricKey"}});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let owner = world.policy("provisioningserviceowner");
    let path = format!("/enrollmentGroups/{id}");
    let answer = world.call("PUT", &path, &owner, Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        !answer.body.to_string().contains("Key\":\""),
        "keys are not shown"
    );
    let keys = world.call(
        "POST",
        &format!("{path}/attestationmechanism"),
        &owner,
        None,
    );
    SasKey::from_base64(keys.body["symmetricKey"]["primaryKey"].as_str().unwrap()).unwrap()
}

#[test]
fn a_group_member_registers_with_its_derived_key() {
    let world = World::new();
    let group = put_group(
        &world,
        "fleet",
        &json!({"capabilities": {"iotEdge": true},
            "initialTwin": {"tags": {"site": 1}, "properties": {"desired": {"a": 1}}}}),
    );
    let key = group.derive("Dev-1");
    let state = register(&world, "Dev-1", &key);
    assert_eq!(state["deviceId"], "Dev-1");
    assert_eq!(
        state["assignedHub"],
        format!("{HOST}:{}", world.https.port())
    );
    assert_eq!(state["symmetricKey"]["enrollmentGroupId"], "fleet");
    // The device now exists, knows its key, and can see itself and its system modules.
    let token = token("Dev-1", &key);
    let device = world.call("GET", "/devices/Dev-1", &token, None);
    assert_eq!(device.status, 200, "{device:?}");
    assert_eq!(primary(&device.body).to_base64(), key.to_base64());
    let modules = world.call("GET", "/devices/Dev-1/modules", &token, None);
    let ids: Vec<_> = modules
        .body
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["moduleId"])
        .collect();
    assert_eq!(ids, ["$edgeAgent", "$edgeHub"]);
    let twin = world.call("GET", "/twins/Dev-1", &world.owner(), None).body;
    assert_eq!(
        (&twin["tags"]["site"], &twin["properties"]["desired"]["a"]),
        (&json!(1), &json!(1))
    );
    // Again, in another case and with the key of the lower-cased id: the same device.
    let generation = device.body["generationId"].clone();
    let state = register(&world, "DEV-1", &group.derive("dev-1"));
    assert_eq!(state["deviceId"], "Dev-1");
    let device = world
        .call("GET", "/devices/Dev-1", &world.owner(), None)
        .body;
    assert_eq!(device["generationId"], generation);
    let twin = world.call("GET", "/twins/Dev-1", &world.owner(), None).body;
    assert_eq!(twin["properties"]["desired"]["$version"], 2);
}

#[test]
fn an_individual_enrolment_shadows_groups_also_when_disabled() {
    let world = World::new();
    let owner = world.policy("provisioningserviceowner");
    let group = put_group(&world, "fleet", &json!({}));
    let body = json!({"registrationId": "dev-1", "deviceId": "other-name",
        "attestation": {"type": "symmetricKey"}});
    let made = world.call("PUT", "/enrollments/dev-1", &owner, Some(&body));
    assert_eq!(made.status, 200, "{made:?}");
    let keys = world
        .call(
            "POST",
            "/enrollments/DEV-1/attestationmechanism",
            &owner,
            None,
        )
        .body;
    let key = SasKey::from_base64(keys["symmetricKey"]["primaryKey"].as_str().unwrap()).unwrap();
    assert_eq!(register(&world, "dev-1", &key)["deviceId"], "other-name");
    let try_with = |key: &SasKey| {
        let token = registration_token(&world, "dev-1", key);
        let path = format!("/{}/registrations/dev-1/register", world.scope);
        world.call(
            "PUT",
            &path,
            &token,
            Some(&json!({"registrationId": "dev-1"})),
        )
    };
    let refused = try_with(&group.derive("dev-1"));
    assert_eq!(
        (refused.status, &refused.body["errorCode"]),
        (401, &json!(401_002))
    );
    for member in ["trackingId", "message", "timestampUtc"] {
        assert!(refused.body[member].is_string(), "{refused:?}");
    }
    // Disabled: neither its own key nor the group's.
    let etag = made.body["etag"].as_str().unwrap();
    let mut body = body;
    body["provisioningStatus"] = "disabled".into();
    let text = body.to_string();
    let path = "/enrollments/dev-1";
    assert_eq!(world.call("PUT", path, &owner, Some(&body)).status, 409);
    let stale = [("If-Match", "\"stale\"")];
    assert_eq!(
        world
            .call_with("PUT", path, &owner, &stale, Some(&text))
            .status,
        412
    );
    let current = [("If-Match", etag)];
    assert_eq!(
        world
            .call_with("PUT", path, &owner, &current, Some(&text))
            .status,
        200
    );
    for key in [&key, &group.derive("dev-1")] {
        assert_eq!(try_with(key).status, 401);
    }
    // Gone: the group decides, and nothing of the old enrolment is left.
    assert_eq!(world.call("DELETE", path, &owner, None).status, 204);
    assert_eq!(
        world.call("GET", path, &owner, None).body["errorCode"],
        404_201
    );
    assert_eq!(
        register(&world, "dev-1", &group.derive("dev-1"))["deviceId"],
        "dev-1"
    );
}

#[test]
fn the_identity_daemons_way_of_making_a_module_works() {
    let world = World::new();
    let key = world.device("dev-1", true);
    // It writes everything in lower case and leaves slashes alone.
    let token = sign(&format!("{HOST}/devices/dev-1").to_lowercase(), &key, "");
    let path = "/devices/dev-1/modules/mod";
    let body = json!({"moduleId": "mod", "deviceId": "dev-1"});
    let made = world.call("PUT", path, &token, Some(&body));
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(made.headers["etag"], format!("{}", made.body["etag"]));
    let generation = made.body["generationId"].as_str().unwrap().to_owned();
    assert!(generation.bytes().all(|b| b.is_ascii_digit()));
    let again = world.call("PUT", path, &token, Some(&body));
    assert_eq!(
        (again.status, again.error()),
        (409, "ModuleAlreadyExistsOnDevice")
    );
    let with_keys = |a: &str, b: &str| {
        json!({"moduleId": "mod", "deviceId": "dev-1", "authentication": {"type": "sas",
            "symmetricKey": {"primaryKey": a, "secondaryKey": b}}})
        .to_string()
    };
    let (a, b) = ("QUFBQUFBQUFBQUFBQUFBQQ==", "QkJCQkJCQkJCQkJCQkJCQg==");
    for (tag, body, status) in [
        ("*", with_keys(a, b), 200),
        ("\"*\"", with_keys(b, a), 200),
        ("stale", with_keys(a, b), 412),
        ("*", with_keys(a, a), 400),
        ("*", with_keys("short", b), 400),
    ] {
        let answer = world.call_with("PUT", path, &token, &[("If-Match", tag)], Some(&body));
        assert_eq!(answer.status, status, "{tag} {answer:?}");
    }
    let read = world.call("GET", path, &token, None).body;
    assert_eq!(
        read["generationId"], generation,
        "it never changes on update"
    );
    assert_eq!(read["authentication"]["type"], "sas");
    assert_eq!(primary(&read).to_base64().as_str(), b);
    let list = world.call("GET", "/devices/dev-1/modules", &token, None);
    assert_eq!(list.body.as_array().map(Vec::len), Some(3), "a bare array");
    let any = [("If-Match", "*")];
    assert_eq!(
        world.call_with("DELETE", path, &token, &any, None).status,
        204
    );
    let gone = world.call("GET", path, &token, None);
    assert_eq!((gone.status, gone.error()), (404, "ModuleNotFound"));
    let made = world.call("PUT", path, &token, Some(&body));
    assert_ne!(made.body["generationId"], generation, "a new life");
    let system = "/devices/dev-1/modules/$edgeAgent";
    assert_eq!(
        world.call_with("DELETE", system, &token, &any, None).status,
        400
    );
}

#[test]
fn a129_device_a_asking_for_bs_data_is_refused() {
    let world = World::new();
    let (a, b) = (world.device("a", true), world.device("b", true));
    let m = world.module("a", "m");
    let body = json!({"deviceId": "b", "moduleId": "x"});
    let of_a = token("a", &a);
    let forged = sign(&format!("{HOST}/devices/b"), &a, "");
    for (method, path) in [
        ("GET", "/devices/b"),
        ("PUT", "/devices/b/modules/x"),
        ("GET", "/devices/b/modules"),
        ("GET", "/devices/b/modules/$edgeAgent"),
        ("DELETE", "/devices/b/modules/$edgeAgent"),
        ("GET", "/devices/nobody"),
        ("GET", "/twins/b"),
    ] {
        for token in [&of_a, &forged] {
            let body = (method == "PUT").then_some(&body);
            assert_eq!(
                world.call(method, path, token, body).status,
                401,
                "{method} {path}"
            );
        }
    }
    // What only a policy may do, a device may not do even to itself.
    let content = json!({"modulesContent": {"$edgeAgent": {"properties.desired": {}}}});
    for (method, path, body) in [
        ("GET", "/devices", None),
        ("GET", "/messages/events", None),
        ("GET", "/twins/a", None),
        ("PATCH", "/twins/a", Some(&content)),
        (
            "POST",
            "/devices/a/applyConfigurationContent",
            Some(&content),
        ),
        ("PUT", "/devices/a", Some(&content)),
        ("DELETE", "/devices/a", None),
        ("GET", "/enrollments/a", None),
    ] {
        assert_eq!(
            world.call(method, path, &of_a, body).status,
            401,
            "{method} {path}"
        );
    }
    // A module reads its own record, and no more.
    let of_m = token("a/modules/m", &m);
    for (method, path, status) in [
        ("GET", "/devices/a/modules/m", 200),
        ("DELETE", "/devices/a/modules/m", 401),
        ("GET", "/devices/a/modules/$edgeAgent", 401),
        ("GET", "/devices/a/modules", 401),
        ("GET", "/devices/a", 401),
    ] {
        assert_eq!(
            world.call(method, path, &of_m, None).status,
            status,
            "{method} {path}"
        );
    }
    // A module is not authenticated by its device's key, as a module.
    let as_module = sign(&format!("{HOST}/devices/a/modules/m"), &a, "");
    assert_eq!(world.mqtt("a/m", &as_module, true).connack, [0, 5]);
    assert_eq!(
        world
            .call("GET", "/devices/b", &token("b", &b), None)
            .status,
        200
    );
}

#[test]
fn a129_policies_reach_as_far_as_their_rights() {
    let world = World::new();
    world.device("a", true);
    let policies = [
        "iothubowner",
        "service",
        "device",
        "registryRead",
        "registryReadWrite",
        "provisioningserviceowner",
    ];
    for (method, path, body, allowed) in [
        (
            "GET",
            "/devices",
            None,
            [true, false, false, true, true, false],
        ),
        (
            "GET",
            "/devices/a",
            None,
            [true, false, false, true, true, false],
        ),
        (
            "PUT",
            "/devices/a/modules/m",
            Some(json!({})),
            [true, false, false, false, true, false],
        ),
        (
            "GET",
            "/twins/a",
            None,
            [true, true, false, false, false, false],
        ),
        (
            "PATCH",
            "/twins/a",
            Some(json!({})),
            [true, true, false, false, false, false],
        ),
        (
            "GET",
            "/messages/events",
            None,
            [true, true, false, false, false, false],
        ),
        (
            "GET",
            "/enrollments/a",
            None,
            [false, false, false, false, false, true],
        ),
    ] {
        for (policy, allowed) in policies.into_iter().zip(allowed) {
            let status = world
                .call(method, path, &world.policy(policy), body.as_ref())
                .status;
            assert_eq!(
                status != 401,
                allowed,
                "{method} {path} by {policy}: {status}"
            );
        }
    }
    let other = sign(
        "other.test",
        &world.policy_key("iothubowner"),
        "&skn=iothubowner",
    );
    assert_eq!(world.call("GET", "/devices", &other, None).status, 401);
    for bad in ["", "Bearer x", "SharedAccessSignature sr=x"] {
        assert_eq!(
            world.call("GET", "/devices", bad, None).status,
            401,
            "{bad}"
        );
    }
}

#[test]
fn a32_documents_that_two_readers_read_differently_are_refused() {
    let world = World::new();
    let put = |body: &str| world.call_with("PUT", "/devices/d", &world.owner(), &[], Some(body));
    for (body, status, name) in [
        (
            "{\"deviceId\":\"d\",\"deviceId\":\"e\"}".to_owned(),
            400,
            "IotHubFormatError",
        ),
        ("{\"a\":{\"b\":1,\"b\":2}}".into(), 400, "IotHubFormatError"),
        ("{".into(), 400, "IotHubFormatError"),
        ("{} {}".into(), 400, "IotHubFormatError"),
        ("[1]".into(), 400, "IotHubFormatError"),
        (String::new(), 400, "IotHubFormatError"),
        ("{\"deviceId\":\"other\"}".into(), 400, "ArgumentInvalid"),
        ("{\"status\":\"maybe\"}".into(), 400, "ArgumentInvalid"),
        (
            "{\"authentication\":{\"type\":\"selfSigned\"}}".into(),
            400,
            "ArgumentInvalid",
        ),
        (
            format!("{{\"a\":\"{}\"}}", "x".repeat(64 << 10)),
            413,
            "MessageTooLarge",
        ),
    ] {
        let answer = put(&body);
        assert_eq!(
            (answer.status, answer.error()),
            (status, name),
            "{body:.60}"
        );
    }
    assert_eq!(
        world.call("GET", "/devices/d", &world.owner(), None).status,
        404
    );
}

#[test]
fn requests_without_version_route_or_right_method_are_refused_in_the_hubs_form() {
    let world = World::new();
    let raw = |line: &str| {
        let text = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = world.raw(&text);
        (answer.status, answer.error().to_owned())
    };
    assert_eq!(raw("GET /devices"), (400, "ArgumentInvalid".into()));
    assert_eq!(
        raw("GET /devices?api-version=yesterday"),
        (400, "ArgumentInvalid".into())
    );
    assert_eq!(
        raw("GET /nothing/here/at/all?api-version=2021-04-12").0,
        404
    );
    assert_eq!(raw("PATCH /devices?api-version=2021-04-12").0, 405);
    assert_eq!(raw("GET /devices/a%ff?api-version=2021-04-12").0, 400);
    assert_eq!(raw("GET /devices/a%2fb?api-version=2021-04-12").0, 400);
    let long = format!("GET /devices?x={}", "a".repeat(30 << 10));
    let text = format!("{long} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!((400..500).contains(&world.raw(&text).status));
}

#[test]
fn twins_of_operators_have_etags_versions_and_metadata() {
    let world = World::new();
    world.device("d", false);
    let owner = world.owner();
    let body = json!({"tags": {"a": 1}, "properties": {"desired": {"x": {"y": 1}}}});
    let twin = world.call("PATCH", "/twins/d", &owner, Some(&body));
    assert_eq!(twin.status, 200, "{twin:?}");
    assert_eq!(twin.body["properties"]["desired"]["$version"], 2);
    assert_eq!(
        twin.body["properties"]["desired"]["$metadata"]["x"]["y"]["$lastUpdatedVersion"],
        2
    );
    assert_eq!(
        (&twin.body["version"], &twin.body["tags"]),
        (&json!(2), &json!({"a": 1}))
    );
    let etag = twin.body["etag"].as_str().unwrap();
    let body = json!({"properties": {"desired": {"z": 1}}}).to_string();
    let replace =
        |tag| world.call_with("PUT", "/twins/d", &owner, &[("If-Match", tag)], Some(&body));
    assert_eq!(
        (replace("\"x\"").status, replace("\"x\"").error()),
        (412, "PreconditionFailed")
    );
    let twin = replace(etag);
    assert_eq!(twin.status, 200, "{twin:?}");
    assert_eq!(twin.body["tags"], json!({"a": 1}), "not given, not touched");
    assert_eq!(twin.body["properties"]["desired"]["x"], Value::Null);
    assert_eq!(twin.body["properties"]["desired"]["$version"], 3);
    let bad = json!({"properties": {"desired": {"a.b": 1}}});
    assert_eq!(
        world.call("PATCH", "/twins/d", &owner, Some(&bad)).error(),
        "ArgumentInvalid"
    );
    let missing = world.call("GET", "/twins/nobody", &owner, None);
    assert_eq!((missing.status, missing.error()), (404, "DeviceNotFound"));
}

#[test]
fn a_deployment_makes_modules_and_raises_no_version_in_vain() {
    let world = World::new();
    world.device("d", true);
    world.device("plain", false);
    let owner = world.owner();
    let apply = |device: &str, body: &Value| {
        let path = format!("/devices/{device}/applyConfigurationContent");
        world.call("POST", &path, &owner, Some(body)).status
    };
    let version = |module: &str| {
        let twin = world
            .call("GET", &format!("/twins/d/modules/{module}"), &owner, None)
            .body;
        twin["properties"]["desired"]["$version"].clone()
    };
    let both = json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1"}},
        "m": {"properties.desired": {"a": 1}}}});
    assert_eq!(apply("d", &both), 204);
    assert_eq!((version("$edgeAgent"), version("m")), (json!(2), json!(2)));
    assert_eq!(apply("d", &both), 204);
    assert_eq!((version("$edgeAgent"), version("m")), (json!(2), json!(2)));
    // No longer named: the identity stays, what was configured goes.
    let one = json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1"}}}});
    assert_eq!(apply("d", &one), 204);
    assert_eq!((version("$edgeAgent"), version("m")), (json!(2), json!(3)));
    assert_eq!(apply("d", &json!({"modulesContent": {}})), 400);
    assert_eq!(apply("plain", &both), 400);
    assert_eq!(apply("nobody", &both), 404);
    // One bad module: nothing of the deployment happens.
    let bad = json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.2"}},
        "m": {"properties.desired": {"a.b": 1}}}});
    assert_eq!(apply("d", &bad), 400);
    assert_eq!(version("$edgeAgent"), json!(2));
}
