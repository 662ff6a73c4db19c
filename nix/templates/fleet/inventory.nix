{
  machines = {
    server = {
      machineClass = "nixos";
      system = "x86_64-linux";
      # What must hold on the machine for an update to stay.
      muster.checks.ssh.tcp = "127.0.0.1:22";
    };
    laptop = {
      machineClass = "darwin";
      system = "aarch64-darwin";
      tags = [ "laptops" ];
    };
  };

  # Services for several machines. Every machine automatically has the tags `all` and its class.
  instances.tools = {
    module.name = "packages";
    roles.default = {
      tags = [ "all" ];
      settings.packages = [ "git" ];
    };
  };
}
