{
  system.primaryUser = "chris";
  system.stateVersion = 6;
}
