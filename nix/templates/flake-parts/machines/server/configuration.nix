{
  # Replace this by what `nixos-generate-config --show-hardware-config` says on the machine.
  boot.loader.grub.device = "/dev/vda";
  fileSystems."/" = {
    device = "/dev/vda1";
    fsType = "ext4";
  };

  services.openssh.enable = true;

  system.stateVersion = "26.05";
}
