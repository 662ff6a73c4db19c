fleet:
let
  inherit (fleet) good machine;
in
{
  "an inventory is a set" = {
    inventory = "inventory.nix";
    says = [ "inventory: this is a string; write a set with instances, machines, meta, rollouts, tags." ];
  };
  "a misspelt field of the inventory" = {
    inventory = good // { machine = { }; };
    says = [
      "machine: there is no such field. Did you mean `machines`? It may have instances, machines, meta, rollouts, tags."
    ];
  };
  "Clan's older services" = {
    inventory = good // { services = { }; };
    says = [ "services: Clan's older `services` are gone; write `instances`." ];
  };
  "machines as a list" = {
    inventory.machines = [ "tin" ];
    says = [
      "machines: this is a list; write a set of machines, `stibnite.machineClass = \"darwin\"` for example."
    ];
  };
  "a machine's name is a path segment" = {
    inventory = machine "../tin" { };
    says = [
      "machines.\"../tin\": this is no name for a machine: a name is 1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit."
    ];
  };
  "a machine that is no set" = {
    inventory = good // { machines.tin = "x86_64-linux"; };
    says = [
      "machines.tin: this is a string; write a set with deploy, description, machineClass, muster, system, tags."
    ];
  };
  "a misspelt field of a machine" = {
    inventory = machine "tin" { tag = [ "servers" ]; };
    says = [
      "machines.tin.tag: there is no such field. Did you mean `tags`? It may have deploy, description, machineClass, muster, system, tags."
    ];
  };
  "class in place of machineClass" = {
    inventory = machine "iron" { class = "darwin"; };
    says = [ "machines.iron.class: the field is called machineClass, as in Clan." ];
  };
  "modules in the inventory" = {
    inventory = machine "iron" { modules = [ ]; };
    says = [
      "machines.iron.modules: modules stand in machines/NAME/configuration.nix, or in mkFleet's argument `machines`."
    ];
  };
  "a class that does not exist" = {
    inventory = machine "tin" { machineClass = "nixo"; };
    says = [
      "machines.tin.machineClass: there is no `nixo`; write \"darwin\", \"nixos\". Did you mean `nixos`?"
    ];
  };
  "macOS as a class" = {
    inventory = machine "iron" { machineClass = "macos"; };
    says = [ "machines.iron.machineClass: there is no `macos`; the class of a Mac is \"darwin\"." ];
  };
  "a system that does not exist" = {
    inventory = machine "tin" { system = "x86_64"; };
    says = [
      "machines.tin.system: there is no system `x86_64`; write \"aarch64-darwin\", \"x86_64-darwin\", \"x86_64-linux\", \"aarch64-linux\"."
    ];
  };
  "macOS as a system" = {
    inventory = machine "iron" { system = "aarch64-macos"; };
    says = [
      "machines.iron.system: there is no system `aarch64-macos`; a Mac's is \"aarch64-darwin\"."
    ];
  };
  "a system of the other class" = {
    inventory = machine "iron" { system = "aarch64-linux"; };
    says = [
      "machines.iron.system: aarch64-linux is no system of a Mac; write \"aarch64-darwin\", \"x86_64-darwin\", or machineClass = \"nixos\"."
    ];
  };
  "a description that is no text" = {
    inventory = machine "tin" { description = 7; };
    says = [ "machines.tin.description: this is a number; write a string." ];
  };
  "a build host of another class" = {
    inventory = machine "iron" { deploy.buildHost = "tin"; };
    says = [
      "machines.iron.deploy.buildHost: tin is a NixOS host and cannot build for iron, which is a Mac; write zinc, or take it out."
    ];
  };
  "a build host of another class, and no other to offer" = {
    inventory.machines = {
      tin = fleet.machines.tin // {
        deploy.buildHost = "iron";
      };
      inherit (fleet.machines) iron;
    };
    says = [
      "machines.tin.deploy.buildHost: iron is a Mac and cannot build for tin, which is a NixOS host; there is no other of its class, so take it out."
    ];
  };
  "a build host that is not in the fleet" = {
    inventory = machine "iron" { deploy.buildHost = "zync"; };
    says = [
      "machines.iron.deploy.buildHost: there is no machine `zync`. Did you mean `zinc`? The inventory has iron, lead, tin, zinc."
    ];
  };
  "a machine as its own build host" = {
    inventory = machine "iron" { deploy.buildHost = "iron"; };
    says = [
      "machines.iron.deploy.buildHost: a machine that builds for itself needs no build host; take it out."
    ];
  };
  "an address as build host" = {
    inventory = machine "iron" { deploy.buildHost = "root@zinc.local"; };
    says = [
      "machines.iron.deploy.buildHost: `root@zinc.local` is an address; write the name of a machine of this inventory, without user or port."
    ];
  };
  "an address to push to" = {
    inventory = machine "tin" { deploy.targetHost = "root@tin"; };
    says = [
      "machines.tin.deploy.targetHost: Muster's machines pull and need no address; take it out."
    ];
  };
  "a misspelt field of deploy" = {
    inventory = machine "tin" { deploy.buildhost = "lead"; };
    says = [
      "machines.tin.deploy.buildhost: there is no such field. Did you mean `buildHost`? It may have buildHost."
    ];
  };
}
