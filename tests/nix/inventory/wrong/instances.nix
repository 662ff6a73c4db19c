fleet:
let
  inherit (fleet) good instance roles;
in
{
  "instances as a list" = {
    inventory = good // { instances = [ "web" ]; };
    says = [
      "instances: this is a list; write a set of instances, `sshd.roles.server.tags.nixos = { }` for example."
    ];
  };
  "a misspelt field of an instance" = {
    inventory = instance { role.server = { }; };
    says = [
      "instances.web.role: there is no such field. Did you mean `roles`? It may have module, roles."
    ];
  };
  "settings of an instance" = {
    inventory = instance { settings.port = 80; };
    says = [
      "instances.web.settings: settings stand in a role: `roles.ROLE.settings`, or those of a machine or tag in it."
    ];
  };
  "machines of an instance" = {
    inventory = instance { machines.tin = { }; };
    says = [
      "instances.web.machines: machines stand in a role: `roles.ROLE.machines.NAME = { }`."
    ];
  };
  "a module that is no set" = {
    inventory = instance { module = "web"; };
    says = [ "instances.web.module: this is a string; write a set with input, name." ];
  };
  "an input that the flake does not have" = {
    inventory = instance { module.input = "mustr"; };
    says = [
      "instances.web.module.input: the flake has no input `mustr`. Did you mean `muster`? Write \"muster\", \"self\", or one of community, plain."
    ];
  };
  "an input without services" = {
    inventory = instance { module.input = "plain"; };
    says = [
      "instances.web.module.input: the input `plain` has no services: its flake has no output `clan.modules`."
    ];
  };
  "a service that an input does not have" = {
    inventory = instance {
      module = {
        input = "community";
        name = "wep";
      };
    };
    says = [
      "instances.web.module.name: the input `community` has no service `wep`. Did you mean `web`? It has web."
    ];
  };
  "a service that Muster does not have" = {
    inventory = instance { module.name = "zerotire"; };
    says = [
      "instances.web.module.name: Muster has no service `zerotire`. Did you mean `zerotier`? It has sshd, zerotier."
    ];
  };
  "a service that this flake does not have" = {
    inventory = instance {
      module = {
        input = "self";
        name = "mail";
      };
    };
    says = [
      "instances.web.module.name: this flake (mkFleet's argument `modules`) has no service `mail`. It has crowded, launcher, marker, nothing, pair, reader, tuner, web."
    ];
  };
  "an instance without roles" = {
    inventory = roles { };
    says = [
      "instances.web.roles: no role is given, so this instance does nothing; write a role with its machines or tags, or take the instance out."
    ];
  };
  "a misspelt field of a role" = {
    inventory = roles { server.machine.tin = { }; };
    says = [
      "instances.web.roles.server.machine: there is no such field. Did you mean `machines`? It may have extraModules, machines, settings, tags."
    ];
  };
  "a role's machines as a list" = {
    inventory = roles { server.machines = [ "tin" ]; };
    says = [
      "instances.web.roles.server.machines: this is a list; write `machines.NAME = { }` for each machine."
    ];
  };
  "an unknown machine in a role" = {
    inventory = roles { server.machines.copper = { }; };
    says = [
      "instances.web.roles.server.machines.copper: there is no machine `copper`. The inventory has iron, lead, tin, zinc."
    ];
  };
  "a tag in place of a machine" = {
    inventory = roles { server.machines.servers = { }; };
    says = [
      "instances.web.roles.server.machines.servers: `servers` is a tag and no machine; write it under `tags`."
    ];
  };
  "settings without the word" = {
    inventory = roles { server.machines.tin.port = 80; };
    says = [
      "instances.web.roles.server.machines.tin.port: there is no such field. It may have settings."
    ];
  };
  "settings that are no set" = {
    inventory = roles { server.settings = 80; };
    says = [ "instances.web.roles.server.settings: this is a number; write a set of settings." ];
  };
  "settings that import" = {
    inventory = roles { server.settings.imports = [ ]; };
    says = [
      "instances.web.roles.server.settings.imports: settings are plain data and import nothing."
    ];
  };
  "settings that compute" = {
    inventory = roles { server.settings.port = machine: 80; };
    says = [
      "instances.web.roles.server.settings.port: this is a function; settings are plain data, and what depends on a machine stands in the service."
    ];
  };
  "a path among the settings" = {
    inventory = roles { server.tags.nixos.settings.root = ./.; };
    says = [
      "instances.web.roles.server.tags.nixos.settings.root: this is a path; write a string, since settings are plain data."
    ];
  };
  "a package among the settings" = {
    inventory = roles { server.settings.package.outPath = "/nix/store/x"; };
    says = [
      "instances.web.roles.server.settings.package: this is a package or a source; write its name as a string, since settings are plain data."
    ];
  };
  "an extra module in quotes" = {
    inventory = roles { server.extraModules = [ "./web.nix" ]; };
    says = [
      "instances.web.roles.server.extraModules: a module is a path, a set or a function, not a string; write it without quotes, `./web.nix`."
    ];
  };
}
