{
  meta.name = "mixed";

  machines = {
    cinnabar = {
      machineClass = "nixos";
      system = "x86_64-linux";
      tags = [ "public" ];
    };
    electrum = {
      machineClass = "nixos";
      system = "aarch64-linux";
    };
    # Both Macs get their own configuration and Muster's agent, and nothing of any instance.
    rosegold.system = "aarch64-darwin";
    argentum.system = "aarch64-darwin";
  };

  # Whatever is no Mac and not public.
  tags =
    { config, ... }:
    {
      inner = builtins.filter (name: !(builtins.elem name config.darwin) && name != "cinnabar") config.all;
    };

  instances = {
    wg = {
      module.name = "wireguard";
      roles.controller.tags.public.settings.endpoint = "cinnabar.example.org";
      roles.peer.tags = [ "inner" ];
    };

    sshd = {
      roles.server = {
        tags = [ "nixos" ];
        settings.passwordAuthentication = false;
      };
      roles.client.tags = [ "nixos" ];
    };

    # A service of this flake, for NixOS alone: it gives no darwinModule, and no Mac is in its role.
    quiet = {
      module = {
        input = "self";
        name = "quiet-hours";
      };
      roles.default = {
        tags = [ "nixos" ];
        machines.electrum.settings.hour = 4;
      };
    };
  };
}
