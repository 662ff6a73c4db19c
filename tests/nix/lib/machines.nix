# The machines of the services' cases: two Macs, the host in the middle of their networks, and another.
{
  cinnabar = {
    machineClass = "nixos";
    tags = [ "servers" ];
  };
  electrum = {
    machineClass = "nixos";
    tags = [ "servers" ];
  };
  stibnite = {
    machineClass = "darwin";
    tags = [ "laptops" ];
  };
  blackphos = {
    machineClass = "darwin";
    tags = [ "laptops" ];
  };
}
