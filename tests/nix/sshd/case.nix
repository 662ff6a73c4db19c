# sshd: servers of both classes, and clients that know them under every name.
t:
let
  alice = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA alice";
  fleet = t.service {
    name = "sshd";
    roles = {
      server.tags.all.settings = {
        authorizedKeys.alice = alice;
        searchDomains = [ "example.org" ];
      };
      server.machines.stibnite.settings.userKeys.alice = [ alice ];
      client.tags = [ "all" ];
    };
    more.zt = {
      module.name = "zerotier";
      roles = {
        controller.machines.cinnabar = { };
        peer.tags.laptops = { };
      };
    };
  };
  known = t.lib.mapAttrs (_: host: { inherit (host) hostNames publicKey; });
  host = one: {
    inherit (one.config.services) openssh;
    root = one.config.users.users.root.openssh;
    knownHosts = known one.config.programs.ssh.knownHosts;
  };
  files = [
    "ssh/sshd_config.d/100-nix-darwin.conf"
    "ssh/nix_authorized_keys.d/root"
    "ssh/nix_authorized_keys.d/alice"
    "ssh/ssh_known_hosts"
  ];
  mac = one: t.lib.concatMapStringsSep "\n" (name: "# /etc/${name}\n${t.etc one name}") files;
  fresh = t.service {
    name = "sshd";
    roles = {
      server.tags = [ "all" ];
      client.tags = [ "all" ];
    };
    directory = t.repository + "/tests/nix/sshd";
  };
in
{
  expect = {
    "stibnite-etc" = mac fleet.ours.stibnite;
    "cinnabar.json" = host fleet.ours.cinnabar;
    "cinnabar-generators.json" = removeAttrs (t.generators fleet.ours.cinnabar.config.muster.vars.generators) [
      "zerotier-identity-cinnabar"
      "zerotier-node-cinnabar"
      "zerotier-network-zt"
    ];
    "fresh-warnings.json" = fresh.ours.stibnite.config.warnings;
  };
  holds = {
    "nix-darwin makes no key in place of the one of the variables" =
      fleet.ours.stibnite.config.services.openssh.hostKeys == [ ];
    "a host outside a network is known without its address" =
      fleet.ours.electrum.config.programs.ssh.knownHosts."sshd-stibnite".hostNames
      == [
        "stibnite"
        "stibnite.example.org"
      ];
    "a fleet without keys evaluates, and knows nobody" = fresh.ours.cinnabar.config.programs.ssh.knownHosts == { };
  }
  // t.inClan {
    "a Mac in a Clan has the same files" = mac fleet.clans.stibnite == mac fleet.ours.stibnite;
    "a host in a Clan is the same" = host fleet.clans.cinnabar == host fleet.ours.cinnabar;
  };
}
