{
  # The person whose Mac it is, by the account's name.
  system.primaryUser = "me";

  system.stateVersion = 6;
}
