# What fails with a message of the module system, which names the place itself; and two that show how mkFleet
# prints.
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
  "settings that conflict" = tin {
    machines.tin.settings.port = 81;
    tags.servers.settings.port = 82;
  };
  "a setting that the role does not have" = tin {
    settings.prot = 80;
    machines.tin = { };
  };
  "a setting that is missing" = tin { machines.tin = { }; };
  "a setting of another type" = tin { machines.tin.settings.port = "80"; };
  "a module of a host as a service" =
    (of (
      fleet.instance {
        module = {
          input = "self";
          name = "host";
        };
      }
    )).muster.settings.web;
  "one mistake" = (of (fleet.machine "tin" { deploy.buildHost = "iron"; })).nixosConfigurations;
  "several mistakes" =
    (of (
      fleet.machine "tin" {
        deploy.buildHost = "iron";
        tags = [ "darwin" ];
      }
    )).nixosConfigurations;
}
