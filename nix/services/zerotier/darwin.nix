# The daemon on a Mac. It needs no kernel extension: the program MacEthernetTapAgent, which must be in its
# folder, creates the interface.
{
  lib,
  config,
  pkgs,
  ...
}:
let
  cfg = config.muster.zerotier;
  launchd = import ../common/launchd.nix { inherit lib; };
  plan = import ./plan.nix { inherit lib pkgs cfg; };
  home = "/Library/Application Support/ZeroTier/One";
  localConf = pkgs.writeText "zerotier-local.conf" (builtins.toJSON cfg.localConf);
  # nixpkgs builds that program but does not install it.
  package = pkgs.zerotierone.overrideAttrs (old: {
    postInstall = (old.postInstall or "") + ''
      if [ -e MacEthernetTapAgent ]; then install -m 755 MacEthernetTapAgent $out/bin/; fi
    '';
  });
in
{
  imports = [ ./options.nix ];

  config = {
    environment.systemPackages = [ package ];
    launchd.daemons.zerotierone.serviceConfig = launchd.daemon {
      name = "zerotierone";
      path = [ package ];
      program = [
        "/bin/sh"
        "${./zerotier.sh}"
        "run"
      ]
      ++ plan.arguments home
      ++ [
        "${localConf}"
        (toString cfg.port)
      ];
      configuration = {
        inherit (cfg)
          port
          networks
          localConf
          fingerprint
          ;
      };
    };
  };
}
