# Simple services, of every kind that the inventory distinguishes.
let
  service = name: rest: {
    _class = "clan.service";
    manifest = { inherit name; } // (rest.manifest or { });
    roles = rest.roles or { };
  } // removeAttrs rest [ "manifest" "roles" ];
in
{
  # For both classes.
  web =
    { lib, ... }:
    service "web" {
      manifest = {
        description = "A web server";
        exports.out = [ "peer" ];
      };
      roles.server = {
        interface = {
          options = {
            port = lib.mkOption { type = lib.types.port; };
            sites = lib.mkOption {
              type = lib.types.listOf lib.types.str;
              default = [ ];
            };
          };
        };
        perInstance =
          {
            instanceName,
            machine,
            roles,
            settings,
            extendSettings,
            mkExports,
            exports,
            meta,
            ...
          }:
          let
            said = {
              inherit instanceName machine;
              inherit (settings) port sites;
              others = builtins.mapAttrs (_: other: other.settings.port) roles.server.machines;
              forced = (extendSettings { port = lib.mkOverride 10 1; }).port;
              exported = builtins.mapAttrs (_: value: value.peer.port) exports;
              fleet = meta.name;
            };
          in
          {
            nixosModule.told.nixos.${instanceName} = said;
            darwinModule.told.darwin.${instanceName} = said;
            exports = mkExports { peer.port = settings.port; };
          };
      };
      perMachine =
        { machine, instances, ... }:
        let
          module.told.machine = {
            inherit (machine) roles;
            instances = builtins.attrNames instances;
          };
        in
        {
          nixosModule = module;
          darwinModule = module;
        };
    };

  # Reads what the others export.
  reader =
    _:
    service "reader" {
      roles.default.perInstance = { exports, ... }: { nixosModule.told = { inherit exports; }; };
    };

  # Only for NixOS.
  tuner = _: service "tuner" { roles.default.perInstance = _: { nixosModule.told.tuned = true; }; };

  # Only for Macs.
  launcher = _: service "launcher" { roles.default.perInstance = _: { darwinModule = { }; }; };

  # Only membership; extraModules do the work.
  marker = _: service "marker" { roles.default = { }; };

  nothing = _: service "nothing" { };

  # A machine's part is made once for all instances.
  crowded =
    _:
    service "crowded" {
      manifest.constraints.maxInstances = 1;
      roles.default = { };
      perMachine = _: {
        nixosModule = { };
        darwinModule = { };
      };
    };

  pair =
    _:
    service "pair" {
      manifest.constraints.roles = {
        first = {
          minMachines = 1;
          maxMachines = 1;
        };
        second.minMachines = 2;
      };
      roles.first = { };
      roles.second = { };
    };
}
