{
  services.muster-agent.enable = true;

  nixpkgs.hostPlatform = "aarch64-darwin";
  networking.hostName = "laptop";
  # The person whose Mac it is, by the account's name.
  system.primaryUser = "me";

  system.stateVersion = 6;
}
