# What is wrong only by a service's own declaration; these evaluate the services, and need nixpkgs's lib.
fleet:
let
  inherit (fleet) good roles;
  of = name: value: good // {
    instances.${name} = {
      module.input = "self";
      roles = value;
    };
  };
in
{
  "an unknown role" = {
    inventory = roles { client.tags.nixos = { }; };
    says = [
      "instances.web.roles.client: self/web has no role `client`. It has server."
    ];
  };
  "a misspelt role" = {
    inventory = roles { servers.tags.nixos = { }; };
    says = [
      "instances.web.roles.servers: self/web has no role `servers`. Did you mean `server`? It has server."
    ];
  };
  "a Mac in a role for NixOS hosts, through a tag" = {
    inventory = of "marker" { default.tags.all = { }; } // {
      instances.speed = {
        module = {
          input = "self";
          name = "tuner";
        };
        roles.default.tags.all = { };
      };
    };
    says = [
      "instances.speed.roles.default: iron is a Mac, and this role of self/tuner has no darwinModule, so it would do nothing there; name machines or a narrower tag in place of `all`."
      "instances.speed.roles.default: zinc is a Mac, and this role of self/tuner has no darwinModule, so it would do nothing there; name machines or a narrower tag in place of `all`."
    ];
  };
  "a Mac in a role for NixOS hosts, by name" = {
    inventory = of "tuner" {
      default.machines = {
        iron = { };
        tin = { };
      };
    };
    says = [
      "instances.tuner.roles.default: iron is a Mac, and this role of self/tuner has no darwinModule, so it would do nothing there; take `machines.iron` out."
    ];
  };
  "a NixOS host in a role for Macs" = {
    inventory = of "launcher" { default.machines.lead = { }; };
    says = [
      "instances.launcher.roles.default: lead is a NixOS host, and this role of self/launcher has no nixosModule, so it would do nothing there; take `machines.lead` out."
    ];
  };
  "a service without roles" = {
    inventory = of "nothing" { default.tags.all = { }; };
    says = [
      "instances.nothing.module: self/nothing has no roles, so it is no service of the inventory."
    ];
  };
  "more instances than a service allows" = {
    inventory = good // {
      instances = builtins.listToAttrs (
        map (name: {
          inherit name;
          value = {
            module = {
              input = "self";
              name = "crowded";
            };
            roles.default.tags = [ "all" ];
          };
        }) [ "one" "two" ]
      );
    };
    says = [
      "instances.one: self/crowded allows at most 1 instances, and the inventory has one, two."
      "instances.two: self/crowded allows at most 1 instances, and the inventory has one, two."
    ];
  };
  "more machines than a role allows, and fewer than one wants" = {
    inventory = of "pair" {
      first.tags.nixos = { };
      second.machines.tin = { };
    };
    says = [
      "instances.pair.roles.first: self/pair allows at most 1 machines in this role, and the inventory gives it lead, tin."
      "instances.pair.roles.second: self/pair wants at least 2 machines in this role, and the inventory gives it 1."
    ];
  };
  "a role that a service wants and the instance does not name" = {
    inventory = of "pair" { first.machines.tin = { }; };
    says = [
      "instances.pair.roles: self/pair wants at least 2 machines in its role `second`; write roles.second."
    ];
  };
}
