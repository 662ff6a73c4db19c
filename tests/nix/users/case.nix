# users: an account with a password on NixOS and without one on a Mac, where the owner's own is left alone.
t:
let
  fleetWith =
    settings:
    t.service {
      name = "users";
      instance = "alice";
      roles.default.tags.all.settings = {
        authorizedKeys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA alice" ];
        groups = [ "wheel" ];
        description = "Alice Liddell";
      }
      // settings;
      modules.blackphos.system.primaryUser = "alice";
    };
  fleet = fleetWith { uid = 502; };
  # nix-darwin also manages the build users.
  people = one: t.lib.filter (name: !t.lib.hasInfix "nixbld" name) one.config.users.knownUsers;
  mac = one: {
    knownUsers = people one;
    alice = removeAttrs one.config.users.users.alice [ "openssh" ] // {
      keys = one.config.users.users.alice.openssh.authorizedKeys.keys;
    };
  };
  owner = one: {
    knownUsers = people one;
    inherit (one.config.users.users.alice.openssh.authorizedKeys) keys;
  };
  host = one: one.config.users.users.alice;
  # The Mac's owner, named by each service that names users, and what needs to know their home.
  ownerWith =
    name: roles: home:
    (t.service {
      inherit name roles;
      instance = "alice";
      more.sync = {
        module.name = "syncthing";
        roles.peer.machines.blackphos.settings.folders.documents.path = "~/Documents";
      };
      modules.blackphos = {
        system.primaryUser = "alice";
        users.users = t.lib.optionalAttrs (home != null) { alice = { inherit home; }; };
      };
    }).ours.blackphos;
  homeOf = one: one.config.system.primaryUserHome;
  syncthing = one: t.userPlist one "org.nixos.syncthing";
  asUser = ownerWith "users" { default.machines.blackphos = { }; };
  asLogin = ownerWith "sshd" {
    server.machines.blackphos.settings.userKeys.alice = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA alice" ];
  };
in
{
  expect = {
    "stibnite.json" = mac fleet.ours.stibnite;
    "blackphos.json" = owner fleet.ours.blackphos;
    "cinnabar.json" = host fleet.ours.cinnabar;
    "cinnabar-generators.json" = t.generators fleet.ours.cinnabar.config.muster.vars.generators;
  };
  holds = {
    "a shell of nixpkgs is set up on both classes" =
      let
        fishes = fleetWith {
          uid = 502;
          shell = "fish";
        };
      in
      (host fishes.ours.cinnabar).shell.name == "fish"
      && fishes.ours.cinnabar.config.programs.fish.enable
      && (mac fishes.ours.stibnite).alice.shell.name == "fish"
      && fishes.ours.stibnite.config.programs.fish.enable;
    "the Mac's owner may have the account, keys and Syncthing together" =
      t.lib.all (one: homeOf one == "/Users/alice" && t.lib.hasInfix "/Users/alice/Library" (syncthing one)) [
        (asUser null)
        (asLogin null)
      ];
    "a home of the owner's own stays" =
      homeOf (asUser "/Volumes/alice") == "/Volumes/alice" && homeOf (asLogin "/Volumes/alice") == "/Volumes/alice";
    "a host wants no number" = (host (fleetWith { }).ours.cinnabar).uid == null;
    "an account may go without a password" =
      (host (fleetWith { password = false; }).ours.cinnabar).hashedPasswordFile == null;
  }
  // t.inClan {
    "a Mac in a Clan has the same account" = mac fleet.clans.stibnite == mac fleet.ours.stibnite;
    "a host in a Clan has the same account" = host fleet.clans.cinnabar == host fleet.ours.cinnabar;
  };
  refuses."a Mac without a number" = mac (fleetWith { }).ours.stibnite;
}
