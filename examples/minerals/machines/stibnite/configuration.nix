{
  system.primaryUser = "carol";
  system.stateVersion = 6;
}
