# The inventory of examples/minerals in a real Clan: what a machine gets there is what it gets from mkFleet.
# needs: clan-core
t:
let
  inherit (t) lib;
  inventory = import (t.repository + "/examples/minerals/inventory.nix");
  directory = t.repository + "/tests/nix/lib/source";
  # The shell's own packages are not in the stand-in package set.
  machines = lib.mapAttrs (
    _: machine: lib.optionalAttrs (machine.machineClass == "darwin") { programs.zsh.enable = false; }
  ) inventory.machines;
  ours = t.fleet { inherit inventory directory machines; };
  clans = t.clan {
    inherit directory machines;
    inventory = {
      # Clan knows neither the system nor Muster's settings of a machine, and expects addresses for build
      # hosts.
      machines = lib.mapAttrs (
        _: machine: removeAttrs machine [ "system" "muster" "deploy" ]
      ) inventory.machines;
      instances = lib.mapAttrs (_: instance: { module = { }; } // instance) inventory.instances;
    };
  };
  # The agent as docs/flakes.md gives it to a Clan's machines, by Clan's own importer.
  nixpkgs = {
    inherit lib;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ] (
      system: t.pkgs system // { rustPlatform.buildRustPackage = { pname, ... }: (t.pkgs system).${pname}; }
    );
  };
  muster = (import (t.repository + "/flake.nix")).outputs {
    inherit nixpkgs;
    sops-nix = t.sops-nix-flake;
    self = muster // {
      outPath = t.repository;
    };
  };
  importing = tag: module: {
    module = {
      input = null;
      name = "importer";
    };
    roles.default.tags.${tag} = { };
    roles.default.extraModules = [
      module
      { services.muster-agent.enable = true; }
    ];
  };
  withAgent = t.clan {
    inherit directory machines;
    clanServices.importer = t.clan-core + "/clanServices/importer";
    inventory = {
      machines = lib.mapAttrs (_: machine: { inherit (machine) machineClass tags; }) inventory.machines;
      instances = {
        agent-on-hosts = importing "nixos" muster.nixosModules.muster-agent;
        agent-on-macs = importing "darwin" muster.darwinModules.muster-agent;
      };
    };
  };
  macs = it: it.darwinConfigurations;
  plists = one: lib.mapAttrs (_: file: t.withoutSecrets file.text) (
    lib.filterAttrs (name: _: lib.hasInfix "zerotier" name || lib.hasInfix "node-exporter" name) one.config.environment.launchDaemons
  );
  # In their order, since that shows the order in which settings were merged.
  ordered = one: lib.filter (name: lib.elem name [ "git" "htop" "ripgrep" "jq" ]) (map (package: package.name or "") one.config.environment.systemPackages);
in
{
  holds = {
    "Clan's importer gives every machine the agent" =
      withAgent.nixosConfigurations.cinnabar.config.systemd.services ? muster-agent
      && lib.all (mac: mac.config.launchd.daemons ? muster-agent) (lib.attrValues (macs withAgent));
    "both have the same machines" =
      lib.attrNames (macs clans) == lib.attrNames (macs ours)
      && lib.attrNames clans.nixosConfigurations == lib.attrNames ours.nixosConfigurations;
    # Clan's own packages follow them.
    "settings are merged in the same order" = lib.all (
      name:
      let
        here = ordered (macs ours).${name};
      in
      lib.take (lib.length here) (ordered (macs clans).${name}) == here
    ) (lib.attrNames (macs ours));
    "that order is of something" = lib.length (ordered (macs ours).stibnite) == 4;
    "Macs have the same daemons" = lib.mapAttrs (_: plists) (macs clans) == lib.mapAttrs (_: plists) (macs ours);
    "there are daemons to compare" = lib.length (lib.attrNames (plists (macs ours).stibnite)) == 2;
    "hosts know the same hosts" =
      let
        known = it: lib.mapAttrs (_: host: host.publicKey) it.nixosConfigurations.cinnabar.config.programs.ssh.knownHosts;
      in
      lib.filterAttrs (name: _: lib.hasPrefix "sshd-" name) (known clans) == known ours;
    "Macs trust the same caches" =
      let
        keys = it: (macs it).blackphos.config.nix.settings.trusted-public-keys;
      in
      lib.subtractLists (keys ours) (keys clans) == [ ];
  };
}
