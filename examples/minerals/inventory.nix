{
  meta.name = "minerals";

  machines = {
    cinnabar = {
      machineClass = "nixos";
      system = "x86_64-linux";
      tags = [ "servers" ];
      description = "The server in the data centre";
      muster = {
        deadlineSeconds = 300;
        checks.ssh.tcp = "127.0.0.1:22";
      };
    };
    stibnite = {
      machineClass = "darwin";
      system = "aarch64-darwin";
      tags = [ "laptops" ];
      description = "Carol's MacBook";
    };
    blackphos = {
      machineClass = "darwin";
      system = "aarch64-darwin";
      tags = [ "laptops" ];
      description = "Rachel's MacBook, which lets stibnite build for it";
      deploy.buildHost = "stibnite";
    };
  };

  instances = {
    # The controller admits every machine of the inventory by the identity in vars/: nothing is copied by hand.
    zt = {
      module.name = "zerotier";
      roles.controller.machines.cinnabar.settings.domain = "zt";
      roles.peer.tags = [ "laptops" ];
    };

    sshd = {
      roles.server.tags.all.settings.authorizedKeys.carol = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcBAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f carol";
      roles.client.tags = [ "all" ];
    };

    caches = {
      module.name = "trusted-nix-caches";
      roles.default = {
        tags = [ "all" ];
        settings.caches.community = {
          url = "https://nix-community.cachix.org";
          publicKeys = [ "nix-community.cachix.org-1:mB9FSh9qf2dCimDSUo8Zy7bkq5CX+/rkCWyvRCYg3Fs=" ];
        };
      };
    };

    # Lists of the role, of the tags and of the machine are joined.
    tools = {
      module.name = "packages";
      roles.default = {
        settings.packages = [ "git" ];
        tags.all.settings.packages = [ "htop" ];
        tags.laptops.settings.packages = [ "ripgrep" ];
        machines.stibnite.settings.packages = [ "jq" ];
      };
    };

    figures = {
      module.name = "node-exporter";
      roles.default = {
        tags = [ "all" ];
        settings.network = "zt";
      };
    };
  };
}
