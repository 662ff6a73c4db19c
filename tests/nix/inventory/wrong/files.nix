# What is beside the inventory: several inventories, the machines' files, the flake's inputs.
fleet:
let
  inherit (fleet) good;
in
{
  "a machine in two inventories" = {
    inventory = [
      good
      ../machines-again.nix
    ];
    says = [ "machines.tin: this is in inventory 1 and in machines-again.nix; keep one of them." ];
  };
  "an instance in two inventories" = {
    inventory = [
      good
      { inherit (good) instances; }
    ];
    says = [ "instances.web: this is in inventory 1 and in inventory 2; keep one of them." ];
  };
  "a machine without a file" = {
    inventory = good // { machines = good.machines // { copper = { }; }; };
    says = [
      "machines.copper: there is no FOLDER/machines/copper/configuration.nix; write it (git must know of a new file), or give its module in mkFleet's argument `machines.copper`."
    ];
  };
  "a module for no machine" = {
    inventory = good;
    arguments.machines.tim = { };
    says = [
      "mkFleet's argument `machines.tim`: the inventory has no machine `tim`. Did you mean `tin`? It has iron, lead, tin, zinc."
    ];
  };
  "a Mac and no nix-darwin" = {
    inventory = good;
    arguments.nix-darwin = null;
    says = [
      "machines.iron: the flake has no input `nix-darwin`, which makes the systems of Macs; add one, or give it in mkFleet's argument `nix-darwin`."
    ];
  };
  "several mistakes at once" = {
    inventory = fleet.machine "tin" { deploy.buildHost = "iron"; } // {
      instances = fleet.web { server.tags.sever = { }; };
    };
    says = [
      "machines.tin.deploy.buildHost: iron is a Mac and cannot build for tin, which is a NixOS host; write lead, or take it out."
      "instances.web.roles.server.tags.sever: no machine has the tag `sever`. Did you mean `servers`? There are all, darwin, nixos, servers."
    ];
  };
}
