{
  system.primaryUser = "rachel";
  system.stateVersion = 6;
}
