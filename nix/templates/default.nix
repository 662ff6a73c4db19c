# For `nix flake init -t MUSTER`.
rec {
  default = fleet;
  fleet = {
    path = ./fleet;
    description = "A fleet of Macs and NixOS hosts in one inventory";
    welcomeText = ''
      1. In flake.nix, say where you have Muster from.
      2. Name your machines in inventory.nix, and put each one's configuration into machines/NAME/configuration.nix.
      3. `git add .`, then `muster machines list --flake .`
    '';
  };
}
