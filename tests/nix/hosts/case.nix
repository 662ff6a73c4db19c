# hosts: the fleet's names, from the inventory and from a network.
t:
let
  fleetWith =
    stibnite:
    t.service {
      name = "hosts";
      roles.default = {
        tags.all.settings = {
          domain = "fleet.internal";
          entries.printer = [ "192.0.2.9" ];
        };
        machines.cinnabar.settings.addresses = [ "192.0.2.7" ];
        machines.stibnite.settings = stibnite;
      };
      more.zt = {
        module.name = "zerotier";
        roles = {
          controller.machines.cinnabar = { };
          peer.tags.laptops = { };
        };
      };
    };
  fleet = fleetWith { };
  asking = fleetWith { nameservers = [ "192.0.2.53" ]; };
  plist = one: t.plist one "org.nixos.hosts-hosts";
  # A second instance, with this setting.
  secondWith =
    settings:
    (t.service {
      name = "hosts";
      roles.default.tags = [ "all" ];
      more.other = {
        module.name = "hosts";
        roles.default.tags.all = { inherit settings; };
      };
    }).ours.stibnite;
  portOf = one: domain: t.lib.last (t.lib.splitString "port " (t.etc one "resolver/${domain}"));
in
{
  expect = {
    "stibnite.plist" = plist fleet.ours.stibnite;
    "stibnite-resolver" = t.etc fleet.ours.stibnite "resolver/fleet.internal";
    "stibnite-resolver-of-a-server" = t.etc asking.ours.stibnite "resolver/fleet.internal";
    "cinnabar.json" = fleet.ours.cinnabar.config.networking.hosts;
    "electrum.json" = fleet.ours.electrum.config.networking.hosts;
  };
  holds = {
    "a Mac that asks a server runs none" = !(asking.ours.stibnite.config.launchd.daemons ? hosts-hosts);
    "two instances answer on two ports" = portOf (secondWith { }) "hosts" != portOf (secondWith { }) "other";
    "a full name is known to other services" =
      fleet.ours.stibnite.config.muster.names.cinnabar == [ "cinnabar.fleet.internal" ]
      && fleet.ours.electrum.config.muster.names.cinnabar == [ "cinnabar.fleet.internal" ];
    "another address changes the daemon" =
      plist fleet.ours.stibnite
      != plist (fleetWith { entries.scanner = [ "192.0.2.10" ]; }).ours.stibnite;
  }
  // t.inClan {
    "a Mac in a Clan runs the same daemon" = plist fleet.clans.stibnite == plist fleet.ours.stibnite;
    "a host in a Clan has the same names" =
      fleet.clans.cinnabar.config.networking.hosts == fleet.ours.cinnabar.config.networking.hosts;
  };
  refuses."one port for two instances" = (secondWith { port = 53535; }).config.launchd.daemons;
}
