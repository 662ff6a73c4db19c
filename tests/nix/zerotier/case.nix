# zerotier: a controller and peers of both classes, from the variables alone.
t:
let
  fleetWith =
    peer:
    t.service {
      name = "zerotier";
      instance = "zt";
      roles = {
        controller.machines.cinnabar.settings = {
          domain = "zt.internal";
          allowedNodes = [ "deadbeef01" ];
          network.mtu = 1400;
        };
        peer.tags.laptops.settings = peer;
        peer.machines.electrum = { };
      };
    };
  fleet = fleetWith { localConf.settings.interfacePrefixBlacklist = [ "utun" ]; };
  # Only what Clan's own zerotier has generated.
  fromClan = t.service {
    name = "zerotier";
    instance = "zt";
    roles = {
      controller.machines.cinnabar = { };
      peer.tags = [ "laptops" ];
    };
    directory = t.repository + "/tests/nix/zerotier/from-clan";
  };
  plist = one: t.plist one "org.nixos.zerotierone";
  addresses = import (t.repository + "/nix/services/zerotier/addresses.nix");
  host =
    one:
    {
      inherit (one.config.services) zerotierone;
      inherit (one.config.muster) networks;
      units = t.lib.mapAttrs (name: _: t.unit one name) one.config.systemd.services;
      inherit (one.config) warnings;
    };
in
{
  expect = {
    "stibnite.plist" = plist fleet.ours.stibnite;
    "stibnite-networks.json" = fleet.ours.stibnite.config.muster.networks;
    "stibnite-generators.json" = t.generators fleet.ours.stibnite.config.muster.vars.generators;
    "cinnabar.json" = host fleet.ours.cinnabar;
    "cinnabar-generators.json" = t.generators fleet.ours.cinnabar.config.muster.vars.generators;
    "electrum.json" = host fleet.ours.electrum;
    "from-clan-warnings.json" = fromClan.ours.cinnabar.config.warnings;
  }
  // t.inClan { "clan/exports.json" = fleet.clanExports; };

  holds = {
    "another permission changes the plist" =
      plist (fleetWith { allowDNS = true; }).ours.stibnite != plist (fleetWith { }).ours.stibnite;
    "nothing else does" = plist (fleetWith { }).ours.stibnite == plist (fleetWith { }).ours.stibnite;
    "both Macs run the same program" =
      builtins.length (t.lib.splitString "zerotier.sh" (plist fleet.ours.blackphos)) == 2;
    "a fleet that used Clan's zerotier keeps its network and addresses" =
      let
        inherit (fromClan.ours.stibnite.config.muster.networks.zt) hosts;
      in
      hosts.stibnite.addresses == [ "fde3:c5b0:d3eb:c0ff:ee99:93ae:c2d7:568b" ]
      && fromClan.ours.stibnite.config.muster.zerotier.networks ? e3c5b0d3ebc0ffee
      && !(hosts ? blackphos);
    "everybody has the address that ZeroTier derives" =
      let
        node = "9f5b01ee54";
        network = "e3c5b0d3ebc0ffee";
      in
      addresses.rfc4193 network node == "fde3:c5b0:d3eb:c0ff:ee99:939f:5b01:ee54";
  }
  // t.inClan {
    "a Mac in a Clan runs the same daemon" = plist fleet.clans.stibnite == t.withoutSecrets (plist fleet.ours.stibnite);
    "a host in a Clan has the same units" = host fleet.clans.cinnabar == host fleet.ours.cinnabar;
    "Clan has the same generators, without restartUnits on a Mac" =
      let
        clans = t.generators fleet.clans.stibnite.config.clan.core.vars.generators;
        ours = t.generators fleet.ours.stibnite.config.muster.vars.generators;
        without = t.lib.mapAttrs (
          _: it: it // { files = t.lib.mapAttrs (_: file: removeAttrs file [ "restartUnits" ]) it.files; }
        );
      in
      without clans == without ours;
  };

  refuses = {
    "a Mac as controller" =
      (t.service {
        name = "zerotier";
        instance = "zt";
        roles = {
          controller.machines.stibnite = { };
        };
      }).ours.stibnite.config.system.build;
    "two controllers" =
      (t.service {
        name = "zerotier";
        instance = "zt";
        roles.controller.tags = [ "servers" ];
      }).ours.cinnabar.config.assertions;
    "a network of another controller" =
      (t.service {
        name = "zerotier";
        instance = "zt";
        roles.controller.machines.electrum = { };
      }).ours.electrum.config.services;
  };
}
