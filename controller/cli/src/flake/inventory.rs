//! Inventories as flakes print them: Clan's in each of its shapes, and our library's.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{MachineName, Tag};
use serde::Deserialize;

/// Where Clan flakes have their inventory.
pub const CLAN_OUTPUT: &str = "clanInternals";

/// Reads what is needed of a Clan flake's `clanInternals` and evaluates no more: no instances, no settings,
/// no systems.
///
/// The inventory is in `inventoryClass.inventorySerialization`; in 2025 it was in `inventoryClass.inventory`,
/// and before that in `inventory`.
pub const OF_CLAN: &str = r#"
clan:
let
  class = clan.inventoryClass or { };
  inventory = class.inventorySerialization or class.inventory or clan.inventory or { };
  strings = list: if builtins.isList list then builtins.filter builtins.isString list else [ ];
  string = text: if builtins.isString text then text else null;
in
{
  machines = builtins.mapAttrs (_: machine: {
    class = string (machine.machineClass or null);
    tags = strings (machine.tags or [ ]);
    description = string (machine.description or null);
    buildHost = string (machine.deploy.buildHost or null);
  }) (inventory.machines or { });
  tags = builtins.mapAttrs (_: strings) (inventory.tags or { });
}
"#;

/// What an inventory says of its machines. Names and tags are as written in the flake: Muster cannot use all
/// of them. Unknown fields of newer libraries are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Inventory {
    pub machines: BTreeMap<String, Entry>,
    /// The members of each tag.
    pub tags: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Entry {
    pub class: Option<String>,
    pub system: Option<String>,
    pub tags: BTreeSet<String>,
    pub description: Option<String>,
    pub build_host: Option<String>,
    /// The machine's roles in each instance; only our library gives them.
    pub roles: BTreeMap<String, Vec<String>>,
}

impl Inventory {
    /// All tags of a machine, whether listed with the machine or with the tag.
    pub fn tags_of(&self, machine: &str) -> BTreeSet<String> {
        let own = self.machines.get(machine).into_iter().flat_map(|entry| entry.tags.iter().cloned());
        let given = self.tags.iter().filter(|(_, members)| members.iter().any(|member| member == machine));
        own.chain(given.map(|(tag, _)| tag.clone())).collect()
    }

    /// The machines and tags that can be named on the command line.
    pub fn usable_tags(&self) -> impl Iterator<Item = (MachineName, BTreeSet<Tag>)> {
        self.machines.keys().filter_map(|name| {
            let tags = self.tags_of(name).iter().filter_map(|tag| tag.parse().ok()).collect();
            Some((name.parse().ok()?, tags))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_from_the_machine_and_from_the_tag() {
        let inventory: Inventory = serde_json::from_str(
            r#"{"machines":{"a":{"tags":["lab"],"new":1},"-b":{}},"tags":{"all":["a","-b"],"odd one":["a"]},
            "version":1}"#,
        )
        .unwrap();
        let tags: Vec<String> = inventory.tags_of("a").into_iter().collect();
        assert_eq!(tags, ["all", "lab", "odd one"]);
        let usable: Vec<_> = inventory.usable_tags().collect();
        assert_eq!(usable.len(), 1, "-b is no machine name");
        assert_eq!(usable[0].1.iter().map(Tag::as_str).collect::<Vec<_>>(), ["all", "lab"]);
    }

    #[test]
    fn an_inventory_of_our_library_is_read() {
        let inventory: Inventory = serde_json::from_str(
            r#"{"version":1,"meta":{"name":"x"},"machines":{"a":{"class":"darwin","system":"aarch64-darwin",
                "tags":["all","darwin"],"description":null,"buildHost":"b","roles":{"sshd":["server"]}}},
                "tags":{"all":["a"]},"instances":{"sshd":{}}}"#,
        )
        .unwrap();
        let entry = &inventory.machines["a"];
        assert_eq!(entry.class.as_deref(), Some("darwin"));
        assert_eq!(entry.build_host.as_deref(), Some("b"));
        assert_eq!(entry.roles["sshd"], ["server"]);
    }
}
