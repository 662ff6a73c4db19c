{
  system.primaryUser = "janet";
  system.stateVersion = 6;
}
