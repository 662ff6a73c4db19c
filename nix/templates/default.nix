# For `nix flake init -t MUSTER#NAME`.
let
  # What each of them needs: one line says where Muster comes from, and it cannot know that.
  begin = more: ''
    1. In flake.nix, change the one line that says so: where you have Muster from.
    2. `git init` where it is no repository yet, `git add .`, then `muster machines list --flake .`
    3. ${more}
  '';
in
rec {
  default = fleet;
  fleet = {
    path = ./fleet;
    description = "A fleet of Macs and NixOS hosts in one inventory";
    welcomeText = begin "Name your machines in inventory.nix, and put each one's configuration into machines/NAME/configuration.nix.";
  };
  flake-parts = {
    path = ./flake-parts;
    description = "The same, with flake-parts";
    welcomeText = begin "Name your machines in inventory.nix, and put each one's configuration into machines/NAME/configuration.nix.";
  };
  plain = {
    path = ./plain;
    description = "nixosConfigurations and darwinConfigurations, without an inventory";
    welcomeText = begin "Put the configurations of your machines in the place of server.nix and laptop.nix.";
  };
}
