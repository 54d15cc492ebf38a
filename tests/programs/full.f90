! Writes FILES files of SIZE bytes as `full.c` does, through the run-time library of Fortran.
program full
  implicit none
  integer :: files, length, file, unit, at
  character(len=20) :: text
  character(len=40) :: path
  integer(1), allocatable :: bytes(:)

  call get_environment_variable("FILES", text)
  read (text, *) files
  call get_environment_variable("SIZE", text)
  read (text, *) length
  allocate (bytes(length))
  do file = 0, files - 1
    do at = 0, length - 1
      bytes(at + 1) = byte_of(mod(at, 1024), file + at / 1024)
    end do
    write (path, '("ckpt/file.", i0)') file
    open (newunit=unit, file=trim(path), access="stream", form="unformatted", status="replace", action="write")
    write (unit) bytes
    close (unit)
  end do
contains
  pure function byte_of(i, number) result(byte)
    integer, intent(in) :: i, number
    integer(1) :: byte
    integer :: value
    value = iand(i * 31 + number * 7 + ishft(i, -8), 255)
    byte = int(merge(value - 256, value, value > 127), 1)
  end function
end program
