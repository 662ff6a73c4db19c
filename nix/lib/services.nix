# All services of an inventory: one evaluation for each service, with all of its instances.
{
  lib,
  directory,
  meta,
  inventory,
  machines,
  roles,
  # By instance, from sources.nix.
  modules,
  exportInterfaces,
}:
let
  inherit (lib)
    attrNames
    concatMap
    filter
    genAttrs
    groupBy
    mapAttrs
    ;
  clanLib = import ./clan-lib.nix { inherit lib; };

  titleOf =
    instance:
    let
      inherit (inventory.instances.${instance}) module;
    in
    "${if module.input == null then "muster" else module.input}/${module.name}";
  byTitle = groupBy titleOf (attrNames inventory.instances);

  # Settings in the order in which they are listed in a conflict: the machine's own, then its tags'.
  settingsOf =
    instance: role: machine: tags:
    let
      value = inventory.instances.${instance}.roles.${role};
      place = "the inventory, instances.${instance}.roles.${role}";
    in
    lib.optional (value.machines ? ${machine}) {
      file = "${place}.machines.${machine}.settings";
      settings = value.machines.${machine}.settings or { };
    }
    ++ map (tag: {
      file = "${place}.tags.${tag}.settings";
      settings = value.tags.${tag}.settings or { };
    }) tags;

  evaluated = mapAttrs (
    title: instances:
    import ./service.nix
      {
        inherit
          lib
          clanLib
          directory
          exports
          ;
        meta = {
          name = "fleet";
          description = null;
          domain = null;
        }
        // meta;
      }
      {
        inherit title;
        module = modules.${lib.head instances};
        spec = inventory.instances.${lib.head instances}.module;
        instances = genAttrs instances (
          instance:
          mapAttrs (role: value: {
            inherit (value) settings extraModules;
            machines = mapAttrs (settingsOf instance role) roles.${instance}.${role};
          }) inventory.instances.${instance}.roles
        );
      }
  ) byTitle;

  exports =
    let
      all = lib.zipAttrsWith (_: values: { imports = values; }) (
        map (service: service.exports) (lib.attrValues evaluated)
      );
      wanted =
        key:
        let
          service = (clanLib.parseScope key).serviceName;
          from = lib.findFirst (one: one.manifest.name == service) null (lib.attrValues evaluated);
        in
        filter (name: exportInterfaces ? ${name}) (if from == null then [ ] else from.manifest.exports.out);
    in
    mapAttrs (
      key: value:
      (lib.evalModules {
        modules = [
          { freeformType = lib.types.lazyAttrsOf lib.types.anything; }
          value
        ]
        ++ map (name: exportInterfaces.${name}) (wanted key);
      }).config
    ) all;

  serviceOf = instance: evaluated.${titleOf instance};
  gives = result: {
    nixos = result.nixosModule != null;
    darwin = result.darwinModule != null;
  };
in
{
  # For parts.nix.
  services = genAttrs (attrNames inventory.instances) (
    instance:
    let
      service = serviceOf instance;
    in
    {
      title = titleOf instance;
      inherit (service.manifest) constraints;
      roles = attrNames service.roles;
      machine = machine: gives service.result.machines.${machine};
      member = role: machine: gives service.result.members.${instance}.${role}.${machine};
    }
  );

  settings = lib.genAttrs (attrNames inventory.instances) (
    instance: (serviceOf instance).result.settings.${instance}
  );

  modulesFor =
    kind: machine: concatMap (title: evaluated.${title}.result.modulesFor kind machine) (attrNames byTitle);

  inherit exports;
}
