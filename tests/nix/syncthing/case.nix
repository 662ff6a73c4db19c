# syncthing: the folders that machines of both classes name.
t:
let
  macs = {
    stibnite.system.primaryUser = "alice";
    blackphos.system.primaryUser = "bob";
  };
  fleetWith =
    modules: stibnite:
    t.service {
      name = "syncthing";
      roles.peer = {
        machines.stibnite.settings = {
          folders.documents.path = "~/Documents";
        }
        // stibnite;
        machines.blackphos.settings = { };
        machines.electrum.settings.folders.documents = {
          path = "/srv/documents";
          type = "receiveonly";
        };
        machines.electrum.settings.addresses = [ "tcp://electrum.example.org:22000" ];
      };
      more.zt = {
        module.name = "zerotier";
        roles = {
          controller.machines.cinnabar = { };
          peer.tags = [ "all" ];
        };
      };
      inherit modules;
    };
  fleet = fleetWith macs { };
  plist = one: t.userPlist one "org.nixos.syncthing";
in
{
  expect = {
    "stibnite.plist" = plist fleet.ours.stibnite;
    "electrum.json" = fleet.ours.electrum.config.services.syncthing;
    "stibnite-generators.json" = {
      inherit (t.generators fleet.ours.stibnite.config.muster.vars.generators) syncthing;
    };
  };
  holds = {
    "another folder changes the agent" =
      plist fleet.ours.stibnite
      != plist (fleetWith macs { folders.music.path = "~/Music"; }).ours.stibnite;
    "an owner who is named without a home has one" =
      plist (fleetWith (macs // { stibnite = { config.system.primaryUser = "alice"; config.users.users.alice = { }; }; }) { }).ours.stibnite
      == plist fleet.ours.stibnite;
    "no daemon of root's touches a person's folders" =
      !(fleet.ours.stibnite.config.launchd.daemons ? syncthing);
  }
  // t.inClan {
    "a Mac in a Clan runs the same agent" = plist fleet.clans.stibnite == plist fleet.ours.stibnite;
    "a host in a Clan is the same" =
      fleet.clans.electrum.config.services.syncthing == fleet.ours.electrum.config.services.syncthing;
  };
  refuses = {
    "a Mac without a primary user" = (fleetWith { } { }).ours.stibnite.config.launchd.user.agents;
    "a device that nobody knows" =
      (fleetWith macs {
        folders.documents = {
          path = "~/Documents";
          extraDevices = [ "telephone" ];
        };
      }).ours.stibnite.config.launchd.user.agents;
  };
}
