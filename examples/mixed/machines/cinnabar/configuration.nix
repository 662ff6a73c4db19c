{
  # From `nixos-generate-config` on the machine.
  boot.loader.grub.device = "/dev/vda";
  fileSystems."/" = {
    device = "/dev/vda1";
    fsType = "ext4";
  };

  system.stateVersion = "26.05";
}
