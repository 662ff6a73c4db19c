# wireguard: two controllers that route for their peers, on both classes.
t:
let
  fleetWith =
    stibnite:
    t.service {
      name = "wireguard";
      instance = "wg";
      roles = {
        controller.machines.cinnabar.settings.endpoint = "cinnabar.example.org";
        controller.machines.electrum.settings = {
          endpoint = "2001:db8::7";
          port = 51999;
        };
        peer.machines.stibnite.settings = {
          controller = "cinnabar";
        }
        // stibnite;
        peer.machines.blackphos.settings.controller = "electrum";
      };
    };
  fleet = fleetWith { };
  plist = one: t.plist one "org.nixos.wireguard-wg";
  host = one: {
    interface = one.config.networking.wireguard.interfaces.wg;
    inherit (one.config.networking) firewall;
    inherit (one.config.boot.kernel) sysctl;
    inherit (one.config) warnings;
  };
  small =
    roles:
    t.service {
      name = "wireguard";
      instance = "wg";
      inherit roles;
    };
in
{
  expect = {
    "stibnite.plist" = plist fleet.ours.stibnite;
    "stibnite.conf" = t.etc fleet.ours.stibnite "wireguard/wg.conf";
    "blackphos.conf" = t.etc fleet.ours.blackphos "wireguard/wg.conf";
    "cinnabar.json" = host fleet.ours.cinnabar;
    "electrum.json" = host fleet.ours.electrum;
    "stibnite-networks.json" = fleet.ours.stibnite.config.muster.networks;
    "stibnite-generators.json" = t.generators fleet.ours.stibnite.config.muster.vars.generators;
  };
  holds = {
    "a changed peer changes the daemon" =
      let
        moved = small {
          controller.machines.cinnabar.settings.endpoint = "elsewhere.example.org";
          peer.machines.stibnite = { };
        };
        before = small {
          controller.machines.cinnabar.settings.endpoint = "cinnabar.example.org";
          peer.machines.stibnite = { };
        };
      in
      plist moved.ours.stibnite != plist before.ours.stibnite;
    "nix-darwin's own daemon is not there" =
      !(fleet.ours.stibnite.config.launchd.daemons ? wg-quick-wg);
    "only controllers listen at a fixed port" =
      let
        pair = small {
          controller.machines.cinnabar.settings.endpoint = "c.example.org";
          peer.machines.electrum = { };
        };
        port = one: one.config.networking.wireguard.interfaces.wg.listenPort;
      in
      port pair.ours.electrum == null && port pair.ours.cinnabar == 51820;
    "one controller needs no naming" =
      t.lib.hasInfix "Endpoint = cinnabar.example.org:51820" (
        t.etc
          (small {
            controller.machines.cinnabar.settings.endpoint = "cinnabar.example.org";
            peer.machines.stibnite = { };
          }).ours.stibnite
          "wireguard/wg.conf"
      );
  }
  // t.inClan {
    "a Mac in a Clan runs the same daemon" = plist fleet.clans.stibnite == t.withoutSecrets (plist fleet.ours.stibnite);
    "a Mac in a Clan has the same configuration" =
      t.etc fleet.clans.stibnite "wireguard/wg.conf" == t.etc fleet.ours.stibnite "wireguard/wg.conf";
    "a host in a Clan has the same interface" = host fleet.clans.cinnabar == host fleet.ours.cinnabar;
  };
  refuses = {
    "a peer that does not say who routes for it" = (fleetWith { controller = null; }).ours.stibnite.config.networking.wg-quick.interfaces;
    "a controller that is none" = (fleetWith { controller = "blackphos"; }).ours.stibnite.config.networking.wg-quick.interfaces;
    "a machine in both roles" =
      (small {
        controller.machines.cinnabar.settings.endpoint = "c.example.org";
        peer.machines.cinnabar = { };
      }).ours.cinnabar.config.networking.firewall;
    "a name that no interface can have" =
      (t.service {
        name = "wireguard";
        instance = "the-network-of-us-all";
        roles.controller.machines.cinnabar.settings.endpoint = "c.example.org";
      }).ours.cinnabar.config.networking.firewall;
  };
}
