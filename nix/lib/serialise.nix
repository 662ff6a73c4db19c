# The inventory as programs read it (`nix eval --json .#muster.inventory`): only data, every tag and role
# resolved. Additive: a field is never removed, and readers ignore unknown ones.
{ relations }:
{
  inventory,
  machines,
  roles,
}:
let
  inherit (builtins) attrNames mapAttrs;
in
{
  version = 1;
  inherit (inventory) meta;
  machines = mapAttrs (name: machine: {
    inherit (machine)
      class
      system
      tags
      description
      buildHost
      ;
    roles = relations.rolesOfMachine roles name;
  }) machines;
  tags = builtins.listToAttrs (
    map (tag: {
      name = tag;
      value = relations.membersOf machines tag;
    }) (relations.knownTags inventory machines)
  );
  instances = mapAttrs (name: instance: {
    module = {
      input = if instance.module.input == null then "muster" else instance.module.input;
      inherit (instance.module) name;
    };
    roles = mapAttrs (role: value: {
      machines = attrNames roles.${name}.${role};
      tags = attrNames value.tags;
    }) instance.roles;
  }) inventory.instances;
}
