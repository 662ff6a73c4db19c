# Where a service comes from: `module.input` and `module.name` of an instance, as in Clan. Only names are
# looked at.
{ text }:
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    mapAttrs
    ;
  inherit (text) didYouMean listed path quote;
in
{
  # Muster's own services, the fleet's, and the flake's inputs.
  muster,
  own,
  inputs,
}:
let
  # An input is read only where an instance names it: Nix would fetch it.
  look =
    place: module:
    let
      name = if module.input == null then "muster" else module.input;
      at = field: says: { problem = "${path (place ++ [ "module" field ])}: ${says}"; };
      from =
        services: whose:
        if services ? ${module.name} then
          { module = services.${module.name}; }
        else
          at "name" "${whose} has no service ${quote module.name}.${didYouMean module.name (attrNames services)} It has ${listed (attrNames services)}.";
    in
    if name == "muster" then
      from muster "Muster"
    else if name == "self" then
      from own "this flake (mkFleet's argument `modules`)"
    else if !(inputs ? ${name}) then
      at "input" "the flake has no input ${quote name}.${didYouMean name (attrNames inputs ++ [ "muster" "self" ])} Write \"muster\", \"self\", or one of ${listed (filter (input: input != "self") (attrNames inputs))}."
    else if !(inputs.${name} ? clan.modules) then
      at "input" "the input ${quote name} has no services: its flake has no output `clan.modules`."
    else
      from inputs.${name}.clan.modules "the input ${quote name}";
  looks =
    inventory:
    mapAttrs (
      instance: value:
      look [
        "instances"
        instance
      ] value.module
    ) inventory.instances;
in
{
  problems =
    inventory:
    let
      found = looks inventory;
    in
    concatMap (name: if found.${name} ? problem then [ found.${name}.problem ] else [ ]) (
      attrNames found
    );
  modules = inventory: mapAttrs (_: found: found.module) (looks inventory);
}
