//! Which module identities at the hub to create, re-key or delete for the configured host
//! processes (identity-service.md 4.6). Pure; [`crate::modules`] acts on the answer.
//!
//! The reference deletes and recreates a module that is wanted but not in its last record, so a
//! lost record changes every generation and orphans what was encrypted under the old ones. Here
//! such a module gets our keys and keeps its generation: losing `prev_state` rotates nothing.
//! A module that no record of ours names is never deleted.

use std::collections::BTreeSet;

use contract::names::ModuleId;

/// A module identity that the hub lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub id: ModuleId,
    /// Whether the hub gave it a generation; without one it cannot be served.
    pub complete: bool,
}

/// What to do about one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create it with our keys.
    Create(ModuleId),
    /// Give it our keys; its generation stays.
    SetKeys(ModuleId),
    /// Delete it: it was ours and nobody wants it.
    Delete(ModuleId),
}

/// What to do; `wanted` and `previous` are the configured host processes now and at the last
/// success with this hub and device.
#[must_use]
pub fn plan(
    wanted: &BTreeSet<ModuleId>,
    previous: &BTreeSet<ModuleId>,
    listed: &[Listed],
) -> Vec<Action> {
    let mut actions = Vec::new();
    for module in listed {
        let id = module.id.clone();
        match (wanted.contains(&id), previous.contains(&id)) {
            (true, true) if module.complete => {}
            (true, _) => actions.push(Action::SetKeys(id)),
            (false, true) => actions.push(Action::Delete(id)),
            (false, false) => {}
        }
    }
    let there: BTreeSet<&ModuleId> = listed.iter().map(|m| &m.id).collect();
    let absent = wanted.iter().filter(|id| !there.contains(id));
    actions.extend(absent.cloned().map(Action::Create));
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ModuleId {
        ModuleId::new(text).unwrap()
    }

    fn set(names: &[&str]) -> BTreeSet<ModuleId> {
        names.iter().map(|n| id(n)).collect()
    }

    #[test]
    fn the_table() {
        use Action::{Create, Delete, SetKeys};
        for (wanted, previous, listed, want) in [
            (&["a"][..], &[][..], &[][..], vec![Create(id("a"))]),
            (&["a"], &["a"], &[], vec![Create(id("a"))]),
            (&["a"], &["a"], &["a"], vec![]),
            // A lost record does not rotate an identity (weakness 14 of the reference).
            (&["a"], &[], &["a"], vec![SetKeys(id("a"))]),
            (&[], &["a"], &["a"], vec![Delete(id("a"))]),
            // Nobody's: made by the agent or by an operator.
            (&[], &[], &["$edgeAgent", "x"], vec![]),
            (&[], &["a"], &[], vec![]),
            (
                &["a", "b", "c"],
                &["b", "d"],
                &["a", "b", "d", "e"],
                vec![SetKeys(id("a")), Delete(id("d")), Create(id("c"))],
            ),
        ] {
            let listed: Vec<_> = listed
                .iter()
                .map(|n| Listed {
                    id: id(n),
                    complete: true,
                })
                .collect();
            assert_eq!(
                plan(&set(wanted), &set(previous), &listed),
                want,
                "{wanted:?}"
            );
        }
    }

    #[test]
    fn a_module_whose_creation_was_cut_short_gets_its_keys() {
        let half = [Listed {
            id: id("a"),
            complete: false,
        }];
        assert_eq!(
            plan(&set(&["a"]), &set(&["a"]), &half),
            [Action::SetKeys(id("a"))]
        );
    }
}
