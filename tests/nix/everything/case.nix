# All ten services at once, on every machine, in our fleet and in a Clan; and each twice, where a fleet may.
t:
let
  inherit (t) lib;
  macs = [
    "stibnite"
    "blackphos"
  ];
  machines = import (t.repository + "/tests/nix/lib/machines.nix");
  modules = lib.genAttrs macs (_: { system.primaryUser = "bob"; });
  instances = import (t.repository + "/tests/nix/lib/everything.nix") { inherit macs; };
  fleetWith = fleetIn (t.repository + "/tests/nix/lib/source");
  fleetIn =
    directory: instances:
    let
      fleet = {
        inventory = { inherit machines instances; };
        inherit directory;
        machines = lib.mapAttrs (name: _: modules.${name} or { }) machines;
      };
      configurations =
        it:
        lib.mapAttrs (_: one: one // { config = t.checked one.config; }) (
          it.nixosConfigurations // it.darwinConfigurations
        );
    in
    {
      ours = configurations (t.fleet fleet);
      clans = configurations (t.clan fleet);
      # Generators are read before there are any variables.
      generators = lib.mapAttrs (_: one: lib.attrNames one.config.muster.vars.generators) (
        let it = t.fleet fleet; in it.nixosConfigurations // it.darwinConfigurations
      );
      clansGenerators = lib.mapAttrs (_: one: lib.attrNames one.config.clan.core.vars.generators) (
        let it = t.clan fleet; in it.nixosConfigurations // it.darwinConfigurations
      );
    };
  fresh = fleetIn (t.repository + "/tests/nix/everything") instances;
  fleet = fleetWith instances;
  # Additional networks, backups and exporters under another name; each port is used once.
  twice = fleetWith (
    instances
    // {
      zt2 = instances.zt;
      wg2 = lib.recursiveUpdate instances.wg { roles.controller.machines.cinnabar.settings.port = 51821; };
      weekly = instances.nightly;
      hosts2 = lib.recursiveUpdate instances.hosts {
        roles.default.tags.all.settings = {
          domain = "other.internal";
          port = 53536;
        };
      };
      sshd2 = instances.sshd;
      bella = lib.recursiveUpdate instances.alice { roles.default.tags.all.settings.uid = 1503; };
      packages2 = instances.packages;
    }
  );
  # With the network's controller also a peer, and nothing generated.
  everywhere = fleetIn (t.repository + "/tests/nix/everything") (
    lib.recursiveUpdate instances { zt.roles.peer.tags = [ "all" ]; }
  );
  daemons = one: one.config.launchd.daemons;
  ours = lib.filterAttrs (
    _: daemon: daemon.serviceConfig.EnvironmentVariables.MUSTER_CONFIGURATION or null != null
  );
  waits =
    daemon: lib.hasPrefix "/bin/wait4path /nix/store && exec " (lib.elemAt daemon.serviceConfig.ProgramArguments 2);
  units = one: lib.attrNames one.config.systemd.services;
  force = one: builtins.deepSeq (ours (daemons one)) true;
in
{
  expect = {
    "stibnite-daemons.json" = lib.attrNames (ours (daemons fleet.ours.stibnite));
    "cinnabar-units.json" = units fleet.ours.cinnabar;
    "electrum-units.json" = units fleet.ours.electrum;
    "twice-stibnite-daemons.json" = lib.attrNames (ours (daemons twice.ours.stibnite));
    "fresh-generators.json" = fresh.generators;
    "warnings.json" = lib.mapAttrs (_: one: one.config.warnings) fleet.ours;
  };
  holds = {
    "every daemon of ours on a Mac waits for /nix" =
      lib.all waits (lib.attrValues (ours (daemons fleet.ours.stibnite)))
      && lib.all waits (lib.attrValues fleet.ours.stibnite.config.launchd.user.agents);
    "every daemon that services bring to a Mac carries a hash of its configuration" =
      lib.sort lib.lessThan (
        lib.attrNames (ours (daemons fleet.ours.stibnite))
      ) == lib.sort lib.lessThan (
        lib.subtractLists [
          "activate-system"
          "nix-daemon"
          "sops-install-secrets"
        ] (lib.attrNames (daemons fleet.ours.stibnite))
      );
    "so do agents of a person" = lib.all (
      agent: agent.serviceConfig.EnvironmentVariables ? MUSTER_CONFIGURATION
    ) (lib.attrValues fleet.ours.stibnite.config.launchd.user.agents);
    "nothing is warned of twice" = lib.all (one: lib.unique one.config.warnings == one.config.warnings) (
      lib.attrValues fresh.ours ++ lib.attrValues everywhere.ours
    );
    "services may be there twice" =
      force twice.ours.stibnite
      && lib.isString twice.ours.cinnabar.config.services.zerotierone.package.name
      && lib.elem "zerotier-controller-zt2" (units twice.ours.cinnabar);
  }
  // t.inClan {
    "the same daemons run in a Clan" =
      let
        compared = lib.mapAttrs (
          _: it:
          it.serviceConfig
          // {
            EnvironmentVariables = removeAttrs it.serviceConfig.EnvironmentVariables [ "MUSTER_SECRETS" ];
          }
        );
      in
      compared (ours (daemons fleet.clans.stibnite)) == compared (ours (daemons fleet.ours.stibnite));
    "the same units run in a Clan" =
      lib.subtractLists (units fleet.clans.cinnabar) (units fleet.ours.cinnabar) == [ ];
    "a Clan that has generated nothing yet has the same generators" =
      lib.all (machine: lib.subtractLists fresh.clansGenerators.${machine} fresh.generators.${machine} == [ ]) (
        lib.attrNames machines
      );
    "services may be there twice in a Clan" = force twice.clans.blackphos;
  };
}
