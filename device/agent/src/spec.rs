//! What the agent asks the runtime to create for a module (reference/module-runtime.md 7.3).
//!
//! The deployment's settings, and the environment by which a module finds its socket, its hub and
//! its own name. A deployment cannot set those names itself. Pure. What containers need beyond
//! that (socket mounts, networks, labels) belongs here once there is a container engine.

use contract::api::management::{EnvVar, ModuleConfig, ModuleSpec, Settings};

use crate::config::Config;
use crate::desired::Module;

/// A deployment sets a variable that belongs to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deployment sets {0}, which the runtime sets")]
pub struct Reserved(pub String);

/// The spec of a module with this generation of its identity.
///
/// # Errors
/// [`Reserved`].
pub fn build(module: &Module, generation: &str, config: &Config) -> Result<ModuleSpec, Reserved> {
    let ours = environment(module, generation, config);
    if let Some((name, _)) = ours.iter().find(|(name, _)| module.env.contains_key(*name)) {
        return Err(Reserved((*name).to_owned()));
    }
    let mut env = module.env.clone();
    for (name, value) in &config.inherited {
        env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    env.extend(
        ours.into_iter()
            .map(|(name, value)| (name.to_owned(), value)),
    );
    Ok(ModuleSpec {
        name: module.name.plain().to_owned(),
        kind: module.kind.clone(),
        image_pull_policy: Some(module.pull.clone()),
        config: ModuleConfig {
            settings: Settings {
                image: module.image.clone(),
                image_hash: None,
                create_options: module
                    .options
                    .clone()
                    .map(|options| options.into_iter().collect()),
                digest: module.digest.clone(),
                auth: None,
            },
            env: env
                .into_iter()
                .map(|(key, value)| EnvVar { key, value })
                .collect(),
        },
    })
}

fn environment(module: &Module, generation: &str, config: &Config) -> Vec<(&'static str, String)> {
    let mut env = vec![
        ("IOTEDGE_WORKLOADURI", config.workload_uri.clone()),
        ("IOTEDGE_AUTHSCHEME", "sasToken".to_owned()),
        ("IOTEDGE_MODULEGENERATIONID", generation.to_owned()),
        ("IOTEDGE_IOTHUBHOSTNAME", config.hub.to_string()),
        ("IOTEDGE_DEVICEID", config.device.to_string()),
        ("IOTEDGE_MODULEID", module.name.identity()),
        ("IOTEDGE_APIVERSION", config.api_version.clone()),
    ];
    let system = matches!(module.name.plain(), "edgeAgent" | "edgeHub");
    let (host, parent) = if system {
        ("EdgeDeviceHostName", "IOTEDGE_GATEWAYHOSTNAME")
    } else {
        ("IOTEDGE_GATEWAYHOSTNAME", "IOTEDGE_PARENTHOSTNAME")
    };
    if let Some(hostname) = &config.hostname {
        env.push((host, hostname.clone()));
    }
    if let Some(gateway) = &config.gateway {
        env.push((parent, gateway.clone()));
    }
    if module.name.plain() == "edgeAgent" {
        env.push(("IOTEDGE_MANAGEMENTURI", config.management_uri.clone()));
        env.push(("Mode", "iotedged".to_owned()));
    }
    env
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::config::tests::{environment as variables, read as config};
    use crate::desired::tests::{document, read};

    fn built(module: &str, env: serde_json::Value) -> Result<BTreeMap<String, String>, Reserved> {
        let mut variables = variables();
        variables.insert("HOLDFAST_HUB_MQTT", "127.0.0.1:4711");
        variables.insert("IOTEDGE_GATEWAYHOSTNAME", "parent");
        let all = document(&json!({"m": {"type": "host", "status": "running",
            "settings": {"image": "sample"}, "env": env}}));
        let deployment = read(&all).unwrap();
        let module = match module {
            "edgeAgent" => deployment.agent.unwrap(),
            name => deployment.modules[name].clone(),
        };
        let spec = build(&module, "7", &config(&variables).unwrap())?;
        assert_eq!(spec.name, module.name.plain());
        Ok(spec
            .config
            .env
            .into_iter()
            .map(|pair| (pair.key, pair.value))
            .collect())
    }

    #[test]
    fn a_module_is_told_who_it_is_and_where_things_are() {
        let env = built("m", json!({"A": {"value": "b"}})).unwrap();
        for (name, value) in [
            ("A", "b"),
            ("IOTEDGE_MODULEID", "m"),
            ("IOTEDGE_MODULEGENERATIONID", "7"),
            ("IOTEDGE_DEVICEID", "d1"),
            ("IOTEDGE_IOTHUBHOSTNAME", "hub.test"),
            ("IOTEDGE_WORKLOADURI", "unix:///run/module/workload.sock"),
            ("IOTEDGE_GATEWAYHOSTNAME", "box"),
            ("IOTEDGE_PARENTHOSTNAME", "parent"),
            ("HOLDFAST_HUB_MQTT", "127.0.0.1:4711"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.contains_key("IOTEDGE_MANAGEMENTURI") && !env.contains_key("Mode"));
        let env = built("edgeAgent", json!({})).unwrap();
        assert_eq!(env["IOTEDGE_MODULEID"], "$edgeAgent");
        assert_eq!(env["IOTEDGE_GATEWAYHOSTNAME"], "parent");
        assert_eq!(env["IOTEDGE_MANAGEMENTURI"], "unix:///run/module/mgmt.sock");
    }

    #[test]
    fn a_deployment_sets_what_is_handed_on_but_not_what_is_ours() {
        let env = built("m", json!({"HOLDFAST_HUB_MQTT": {"value": "other:1"}})).unwrap();
        assert_eq!(env["HOLDFAST_HUB_MQTT"], "other:1");
        for name in [
            "IOTEDGE_WORKLOADURI",
            "IOTEDGE_MODULEID",
            "IOTEDGE_MODULEGENERATIONID",
        ] {
            assert_eq!(
                built("m", json!({ name: {"value": "x"} })),
                Err(Reserved(name.to_owned()))
            );
        }
    }
}
