# The fleet that the cases in wrong/ are cut from: two NixOS hosts (tin, lead) and two Macs (iron, zinc).
rec {
  machines = {
    tin = {
      machineClass = "nixos";
      system = "x86_64-linux";
      tags = [ "servers" ];
    };
    lead.system = "aarch64-linux";
    iron = {
      machineClass = "darwin";
      system = "aarch64-darwin";
    };
    zinc.system = "aarch64-darwin";
  };
  # One instance of the service for both classes (see services.nix).
  web = roles: {
    web = {
      module = {
        input = "self";
        name = "web";
      };
      inherit roles;
    };
  };
  good = {
    inherit machines;
    instances = web { server.machines.tin = { }; };
  };

  # With something else in place of a machine's fields, of an instance, of its roles.
  machine = name: fields: good // { machines = machines // { ${name} = (machines.${name} or { }) // fields; }; };
  instance = fields: good // { instances.web = good.instances.web // fields; };
  roles = value: good // { instances = web value; };
}
