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
    # Both Macs get their own configuration and Muster's agent, and nothing from any instance.
    rosegold.system = "aarch64-darwin";
    argentum.system = "aarch64-darwin";
  };

  # Every machine that is neither a Mac nor public.
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

    # This flake's own service, for NixOS only: it has no darwinModule, and no Mac is in its role.
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
