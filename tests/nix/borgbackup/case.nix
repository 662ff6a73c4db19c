# borgbackup: clients of both classes and a server on NixOS.
t:
let
  rolesWith = client: {
    server.machines.cinnabar.settings.network = "zt";
    client.machines.stibnite.settings = {
      folders = [ "/Users/alice" ];
      exclude = [ "*/Library/Caches" ];
      destinations.offsite = "ssh://u1@backup.example.org:23/./stibnite";
    }
    // client;
    client.machines.electrum.settings.folders = [ "/srv" ];
  };
  fleetWith =
    client: peers:
    t.service {
      name = "borgbackup";
      instance = "nightly";
      roles = rolesWith client;
      more.zt = {
        module.name = "zerotier";
        roles = {
          controller.machines.cinnabar = { };
          peer.tags = peers;
        };
      };
    };
  fleet = fleetWith { } [ "all" ];
  plist = one: name: t.plist one "org.nixos.borgbackup-nightly-${name}";
in
{
  expect = {
    "stibnite-cinnabar.plist" = plist fleet.ours.stibnite "cinnabar";
    "stibnite-offsite.plist" = plist fleet.ours.stibnite "offsite";
    "electrum.json" = fleet.ours.electrum.config.services.borgbackup.jobs;
    "cinnabar.json" = fleet.ours.cinnabar.config.services.borgbackup.repos;
    "stibnite-generators.json" = {
      inherit (t.generators fleet.ours.stibnite.config.muster.vars.generators) borgbackup;
    };
  };
  holds = {
    "another folder changes the daemon" =
      plist fleet.ours.stibnite "cinnabar"
      != plist (fleetWith { folders = [ "/Users" ]; } [ "all" ]).ours.stibnite "cinnabar";
  }
  // t.inClan {
    "a Mac in a Clan runs the same daemon" =
      plist fleet.clans.stibnite "cinnabar" == plist fleet.ours.stibnite "cinnabar";
    "a host in a Clan has the same jobs" =
      fleet.clans.electrum.config.services.borgbackup.jobs == fleet.ours.electrum.config.services.borgbackup.jobs;
    "a server in a Clan has the same repositories" =
      fleet.clans.cinnabar.config.services.borgbackup.repos
      == fleet.ours.cinnabar.config.services.borgbackup.repos;
  };
  refuses = {
    "a server that is not in the network" =
      (fleetWith { } [ "servers" ]).ours.stibnite.config.launchd.daemons;
    "a Mac as server" =
      (t.service {
        name = "borgbackup";
        roles.server.machines.stibnite = { };
      }).ours.stibnite.config.launchd.daemons;
    "nothing to back up" = (fleetWith { folders = [ ]; } [ "all" ]).ours.stibnite.config.launchd.daemons;
  };
}
