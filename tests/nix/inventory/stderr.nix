# What the module system says of settings, and mkFleet of several mistakes: each attribute fails, and run compares the
# message.
{ lib }:
let
  fleet = import ./fleet.nix;
  of =
    inventory:
    (import ../../../nix { }).mkFleet {
      self = {
        outPath = ./.;
        inputs = { };
      };
      nixpkgs = { inherit lib; };
      nix-darwin = { };
      modules = import ./services.nix // {
        host.services.nginx.enable = true;
      };
      inherit inventory;
    };
  tin = roles: (of (fleet.roles { server = roles; })).muster.settings.web.server.tin.port;
in
{
  conflict = {
    fails = tin {
      machines.tin.settings.port = 81;
      tags.servers.settings.port = 82;
    };
    says = [
      "`instances.web.roles.server.machines.tin.settings.port' has conflicting definition values"
      "In `the inventory, instances.web.roles.server.tags.servers.settings': 82"
      "In `the inventory, instances.web.roles.server.machines.tin.settings': 81"
      "Use `lib.mkForce value`"
    ];
  };
  unknown = {
    fails = tin {
      settings.prot = 80;
      machines.tin = { };
    };
    says = [
      "`instances.web.roles.server.machines.tin.settings.prot' does not exist"
      "In `the inventory, instances.web.roles.server.settings': 80"
      "Did you mean `instances.web.roles.server.machines.tin.settings.port'"
    ];
  };
  missing = {
    fails = tin { machines.tin = { }; };
    says = [
      "`instances.web.roles.server.machines.tin.settings.port' was accessed but has no value defined"
    ];
  };
  type = {
    fails = tin { machines.tin.settings.port = "80"; };
    says = [
      "`instances.web.roles.server.machines.tin.settings.port' is not of type"
      "In `the inventory, instances.web.roles.server.machines.tin.settings': \"80\""
    ];
  };
  # A module of a host, given as a service.
  service = {
    fails =
      (of (
        fleet.instance {
          module = {
            input = "self";
            name = "host";
          };
        }
      )).muster.settings.web;
    says = [
      "`services.\"self/host\".services' does not exist"
      "In `the service self/host'"
    ];
  };
  several = {
    fails =
      builtins.attrNames
        (of (
          fleet.machine "tin" {
            deploy.buildHost = "iron";
            tags = [ "darwin" ];
          }
        )).nixosConfigurations;
    says = [
      "the inventory has 2 mistakes:"
      "- machines.tin.tags: the tag `darwin` is for machines of that class"
      "- machines.tin.deploy.buildHost: iron is a Mac and cannot build for tin"
    ];
  };
}
