//! An edge deployment for one device (reference/cloud.md 3.4, `applyConfigurationContent`).
//!
//! Reads the content strictly, then makes missing module identities and replaces their desired
//! properties where they differ. Modules that an earlier content configured and this one does not
//! name lose their desired properties, not their identity: removing that is the agent's affair.

use contract::names::ModuleId;
use contract::twin::{Limits, Members};
use rusqlite::{Connection, params};
use serde_json::Value;

use crate::error::Error;
use crate::record::Identity;
use crate::registry;
use crate::twins::{self, Notice};

/// A content that was read: desired properties by module.
#[derive(Debug, Clone, PartialEq)]
pub struct Content(Vec<(ModuleId, Members)>);

impl Content {
    /// Reads `{"modulesContent": {"<module>": {"properties.desired": {..}}}}`.
    ///
    /// # Errors
    /// [`Error::Argument`] for anything else, and for a content without the agent.
    pub fn parse(document: &Value) -> Result<Self, Error> {
        let bad = |what: &str| Error::Argument(what.to_owned());
        let members = document
            .as_object()
            .ok_or_else(|| bad("content must be an object"))?;
        if let Some(other) = members.keys().find(|key| *key != "modulesContent") {
            return Err(Error::Argument(format!("unknown member {other:?}")));
        }
        let modules = members
            .get("modulesContent")
            .and_then(Value::as_object)
            .ok_or_else(|| bad("modulesContent must be an object"))?;
        if !modules.contains_key("$edgeAgent") {
            return Err(bad("content lacks $edgeAgent"));
        }
        let mut content = Vec::new();
        for (module, sections) in modules {
            let sections = sections
                .as_object()
                .ok_or_else(|| bad("a module's content must be an object"))?;
            let desired = match (sections.get("properties.desired"), sections.len()) {
                (Some(Value::Object(desired)), 1) => desired.clone(),
                _ => return Err(bad("a module's content is one member properties.desired")),
            };
            content.push((ModuleId::new(module.as_str())?, desired));
        }
        Ok(Self(content))
    }
}

/// Makes a device's modules have this content.
///
/// # Errors
/// Missing device, one that is no edge device, twin limits.
pub fn apply(
    connection: &Connection,
    device: &Identity,
    content: &Content,
    limits: &Limits,
    at: &str,
) -> Result<Vec<Notice>, Error> {
    if !registry::read(connection, device)?.edge {
        return Err(Error::Operation("the device is not an edge device"));
    }
    let mut notices = Vec::new();
    for (module, desired) in &content.0 {
        let module = Identity {
            device: device.device.clone(),
            module: Some(module.clone()),
        };
        registry::ensure(connection, &module, at)?;
        notices.extend(twins::set_desired(
            connection, &module, desired, limits, at,
        )?);
    }
    for module in configured(connection, device)? {
        if !content
            .0
            .iter()
            .any(|(named, _)| Some(named) == module.module.as_ref())
        {
            notices.extend(twins::set_desired(
                connection,
                &module,
                &Members::new(),
                limits,
                at,
            )?);
        }
    }
    connection.execute(
        "UPDATE identity SET configured = 0 WHERE device = ?1",
        params![device.device.as_str()],
    )?;
    for (module, _) in &content.0 {
        connection
            .prepare_cached("UPDATE identity SET configured = 1 WHERE device = ?1 AND module = ?2")?
            .execute(params![device.device.as_str(), module.as_str()])?;
    }
    Ok(notices)
}

fn configured(connection: &Connection, device: &Identity) -> Result<Vec<Identity>, Error> {
    let mut statement = connection
        .prepare_cached("SELECT module FROM identity WHERE device = ?1 AND configured")?;
    let mut rows = statement.query(params![device.device.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(Identity::new(
            device.device.as_str(),
            Some(&row.get::<_, String>(0)?),
        )?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn contents_are_read_strictly() {
        let agent = json!({"properties.desired": {"schemaVersion": "1.1"}});
        assert!(Content::parse(&json!({"modulesContent": {"$edgeAgent": agent}})).is_ok());
        for bad in [
            json!([]),
            json!({}),
            json!({"modulesContent": {}}),
            json!({"modulesContent": {"m": agent}}),
            json!({"modulesContent": {"$edgeAgent": agent}, "deviceContent": {}}),
            json!({"modulesContent": {"$edgeAgent": agent}, "x": 1}),
            json!({"modulesContent": {"$edgeAgent": {}}}),
            json!({"modulesContent": {"$edgeAgent": {"properties.desired": 1}}}),
            json!({"modulesContent": {"$edgeAgent": {"properties.desired.x": {}}}}),
            json!({"modulesContent": {"$edgeAgent": agent, "a/b": agent}}),
        ] {
            assert!(Content::parse(&bad).is_err(), "{bad}");
        }
    }
}
