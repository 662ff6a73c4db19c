# One service and its instances, evaluated by the module system through Clan's service interface. The same
# service file works in a Clan flake, evaluated by Clan.
{
  lib,
  clanLib,
  directory,
  meta,
  # The merged exports of all services, for all of them to read.
  exports,
}:
{
  # Its name in messages: INPUT/NAME.
  title,
  module,
  spec,
  # { INSTANCE = { ROLE = { settings; extraModules; machines.M = [ { file; settings; } ]; }; }; }
  instances,
}:
let
  inherit (lib)
    attrNames
    concatLists
    filterAttrs
    genAttrs
    mapAttrs
    mapAttrsToList
    mkOption
    optional
    setDefaultModuleLocation
    types
    unique
    ;

  machineModule = mkOption {
    # A service that leaves it out does not support that class; an empty module means that there is nothing to
    # do.
    type = types.nullOr types.deferredModule;
    default = null;
  };
  returned = types.deferredModuleWith {
    staticModules = [
      {
        options = {
          nixosModule = machineModule;
          darwinModule = machineModule;
          exports = mkOption {
            type = types.lazyAttrsOf types.deferredModule;
            default = { };
          };
        };
      }
    ];
  };

  applied = specialArgs: module: (lib.evalModules { inherit specialArgs; modules = [ module ]; }).config;

  interface =
    { config, ... }:
    let
      # Role settings, machine settings and those of each matching tag, all of equal priority.
      evaluated =
        instance: role: machine:
        lib.evalModules {
          prefix = [
            "instances"
            instance
            "roles"
            role
          ]
          ++ lib.optionals (machine != null) [
            "machines"
            machine
          ]
          ++ [ "settings" ];
          class = "${config.manifest.name}.${role}.settings";
          specialArgs = { inherit meta; };
          modules = [
            (setDefaultModuleLocation "the interface of role ${role} of ${title}" config.roles.${role}.interface)
          ]
          ++ map (part: setDefaultModuleLocation part.file part.settings) (
            [
              {
                file = "the inventory, instances.${instance}.roles.${role}.settings";
                inherit (instances.${instance}.${role}) settings;
              }
            ]
            ++ lib.optionals (machine != null) instances.${instance}.${role}.machines.${machine}
          );
        };
      settled = instance: mapAttrs (_: role: {
        settings = role.finalSettings.config;
        machines = mapAttrs (_: machine: { settings = machine.finalSettings.config; }) role.machines;
      }) config.instances.${instance}.roles;
      rolesOf = machine: roles: attrNames (filterAttrs (_: role: role.machines ? ${machine}) roles);
      exporter = scope: value: {
        ${clanLib.buildScopeKey ({ serviceName = config.manifest.name; } // scope)} = value;
      };
      own =
        where: given:
        mapAttrs (
          key: value:
          if (clanLib.parseScope key).serviceName == config.manifest.name then
            value
          else
            throw "${where} exports `${key}`; a service exports under its own name, `${config.manifest.name}`."
        ) given;
    in
    {
      options = {
        manifest = mkOption {
          type = types.submodule {
            # Fields that Clan adds to manifests later do no harm here.
            freeformType = types.lazyAttrsOf types.raw;
            options = {
              name = mkOption { type = types.str; };
              description = mkOption {
                type = types.str;
                default = "";
              };
              readme = mkOption {
                type = types.str;
                default = "";
              };
              categories = mkOption {
                type = types.listOf types.str;
                default = [ ];
              };
              exports.out = mkOption {
                type = types.listOf types.str;
                default = [ ];
              };
              exports.inputs = mkOption {
                type = types.listOf types.str;
                default = [ ];
              };
              constraints.maxInstances = mkOption {
                type = types.nullOr types.ints.positive;
                default = null;
              };
              constraints.roles = mkOption {
                type = types.attrsOf (
                  types.submodule {
                    options.minMachines = mkOption {
                      type = types.nullOr types.ints.unsigned;
                      default = null;
                    };
                    options.maxMachines = mkOption {
                      type = types.nullOr types.ints.positive;
                      default = null;
                    };
                  }
                );
                default = { };
              };
            };
          };
        };
        roles = mkOption {
          default = { };
          type = types.lazyAttrsOf (
            types.submodule (
              { name, ... }:
              {
                options = {
                  description = mkOption {
                    type = types.nullOr types.str;
                    default = null;
                  };
                  interface = mkOption {
                    type = types.deferredModule;
                    default = { };
                  };
                  perInstance = mkOption {
                    type = returned;
                    default = { };
                    apply =
                      module: instanceName: machineName:
                      let
                        roles = settled instanceName;
                        final = config.instances.${instanceName}.roles.${name}.machines.${machineName}.finalSettings;
                      in
                      applied {
                        inherit
                          instanceName
                          roles
                          exports
                          meta
                          ;
                        machine = {
                          name = machineName;
                          roles = rolesOf machineName roles;
                        };
                        settings = final.config;
                        extendSettings = more: (final.extendModules { modules = lib.toList more; }).config;
                        mkExports = exporter {
                          inherit instanceName machineName;
                          roleName = name;
                        };
                      } module;
                  };
                };
              }
            )
          );
        };
        perMachine = mkOption {
          type = returned;
          default = { };
          apply =
            module: machineName:
            let
              all = mapAttrs (instance: _: { roles = settled instance; }) config.instances;
              here = filterAttrs (_: instance: rolesOf machineName instance.roles != [ ]) all;
            in
            applied {
              inherit exports meta;
              instances = here;
              machine = {
                name = machineName;
                roles = unique (concatLists (mapAttrsToList (_: instance: rolesOf machineName instance.roles) here));
              };
              settings = throw "perMachine of ${title} has no settings of its own; read instances.INSTANCE.roles.ROLE.machines.MACHINE.settings.";
              mkExports = exporter { inherit machineName; };
            } module;
        };
        instances = mkOption { type = types.lazyAttrsOf types.raw; };
        exports = mkOption {
          type = types.lazyAttrsOf types.deferredModule;
          default = { };
        };
        # Clan's name for the service's source; services may read it.
        module = mkOption {
          type = types.raw;
          default = spec;
        };
        result = mkOption {
          type = types.raw;
          readOnly = true;
          internal = true;
        };
      };

      config = {
        instances = mapAttrs (instance: roles: {
          roles = mapAttrs (role: value: {
            inherit (value) settings extraModules;
            finalSettings = evaluated instance role null;
            machines = mapAttrs (machine: _: {
              finalSettings = evaluated instance role machine;
            }) value.machines;
          }) roles;
        }) instances;

        exports = lib.zipAttrsWith (_: values: { imports = values; }) (
          mapAttrsToList (machine: value: own "perMachine of ${title}, on ${machine}," value.exports) (
            config.result.machines
          )
          ++ concatLists (
            mapAttrsToList (
              instance: roles:
              concatLists (
                mapAttrsToList (
                  role: machines:
                  mapAttrsToList (
                    machine: value: own "role ${role} of ${title}, on ${machine}," value.exports
                  ) machines
                ) roles
              )
            ) config.result.members
          )
        );

        result = rec {
          # What the service makes of each machine in each role of each instance …
          members = mapAttrs (
            instance: roles:
            mapAttrs (
              role: value: mapAttrs (machine: _: config.roles.${role}.perInstance instance machine) value.machines
            ) roles
          ) instances;
          # … and once for each machine that has a part in it.
          machines = genAttrs (unique (
            concatLists (
              mapAttrsToList (
                _: roles: concatLists (mapAttrsToList (_: role: attrNames role.machines) roles)
              ) instances
            )
          )) config.perMachine;
          settings = mapAttrs (
            _: value: mapAttrs (_: role: mapAttrs (_: machine: machine.settings) role.machines) value
          ) (mapAttrs (instance: _: settled instance) instances);
          # The modules of one machine, for `nixosModule` or `darwinModule`.
          modulesFor =
            kind: machine:
            let
              placed =
                file: module:
                optional (module != null) (setDefaultModuleLocation file module);
            in
            placed "${title}, perMachine" (machines.${machine}.${kind} or null)
            ++ concatLists (
              mapAttrsToList (
                instance: roles:
                concatLists (
                  mapAttrsToList (
                    role: value:
                    lib.optionals (value.machines ? ${machine}) (
                      placed "instances.${instance}.roles.${role}, ${title}" members.${instance}.${role}.${machine}.${kind}
                      ++ map (setDefaultModuleLocation "the inventory, instances.${instance}.roles.${role}.extraModules")
                        value.extraModules
                    )
                  ) roles
                )
              ) instances
            );
        };
      };
    };
in
(lib.evalModules {
  class = "clan.service";
  prefix = [
    "services"
    title
  ];
  specialArgs = {
    inherit
      clanLib
      directory
      exports
      meta
      ;
    _ctx = [ title ];
  };
  modules = [
    interface
    (setDefaultModuleLocation "the service ${title}" module)
  ];
}).config
