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
  # A server with neither address nor network, beside other services.
  bare =
    more:
    (t.service {
      name = "borgbackup";
      instance = "nightly";
      roles.server.machines.cinnabar = { };
      roles.client.machines.stibnite.settings.folders = [ "/Users/alice" ];
      inherit more;
    }).ours.stibnite;
  hosts.hosts = {
    module.name = "hosts";
    roles.default.tags = [ "all" ];
    roles.default.machines.cinnabar.settings.addresses = [ "192.0.2.7" ];
  };
  zt.zt = {
    module.name = "zerotier";
    roles.controller.machines.cinnabar = { };
    roles.peer.tags = [ "all" ];
  };
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
  // {
    "a Mac finds the server by its full name" =
      t.lib.hasInfix "ssh://borg@cinnabar.hosts/./." (plist (bare hosts) "cinnabar");
    "or at its address in a network" = t.lib.hasInfix "ssh://borg@[fd" (plist (bare zt) "cinnabar");
    "and is told where it knows the bare name alone" =
      t.lib.any (t.lib.hasInfix "finds cinnabar by that bare name alone") (bare { }).config.warnings
      && (bare hosts).config.warnings == [ ];
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
