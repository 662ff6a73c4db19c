# node-exporter: on both classes, on the loopback address or in a network of the fleet.
t:
let
  network = {
    zt = {
      module.name = "zerotier";
      roles = {
        controller.machines.cinnabar = { };
        peer.tags.laptops = { };
      };
    };
  };
  fleetWith =
    settings: more:
    t.service {
      name = "node-exporter";
      roles.default.tags.all.settings = settings;
      inherit more;
    };
  fleet = fleetWith { enabledCollectors = [ "processes" ]; } { };
  inside = fleetWith { network = "zt"; } (
    network
    // {
      zt = network.zt // {
        roles = network.zt.roles // {
          peer.tags = [ "all" ];
        };
      };
    }
  );
  plist = one: t.plist one "org.nixos.prometheus-node-exporter";
  exporter = one: one.config.services.prometheus.exporters.node;
in
{
  expect = {
    "stibnite.plist" = plist fleet.ours.stibnite;
    "stibnite-command" = fleet.ours.stibnite.config.launchd.daemons.prometheus-node-exporter.script;
    "stibnite-command-in-a-network" =
      inside.ours.stibnite.config.launchd.daemons.prometheus-node-exporter.script;
    "cinnabar.json" = exporter fleet.ours.cinnabar;
  };
  holds = {
    "another collector changes the daemon" =
      plist fleet.ours.stibnite != plist (fleetWith { } { }).ours.stibnite;
    "a host in a network listens there" =
      (exporter inside.ours.electrum).listenAddress == "[fde3:c5b0:d3eb:c0ff:ee99:939f:5b01:ee54]";
  }
  // t.inClan {
    "a Mac in a Clan runs the same daemon" = plist fleet.clans.stibnite == plist fleet.ours.stibnite;
    "a host in a Clan is the same" = exporter fleet.clans.cinnabar == exporter fleet.ours.cinnabar;
  };
  refuses = {
    "a network that is none" = exporter (fleetWith { network = "lan"; } { }).ours.cinnabar;
    "a network without the machine" = exporter (fleetWith { network = "zt"; } network).ours.electrum;
  };
}
