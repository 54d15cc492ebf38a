! Checkpoints of a Fortran program: stream and sequential units, append, inquire, direct access, one unit left open.
! Argument: write | restart
program units
  implicit none
  character(len=16) :: phase
  call get_command_argument(1, phase)
  if (phase == 'write') then
    call write_all()
  else
    call restart()
  end if
contains
  subroutine write_all()
    real(8) :: field(200000)
    integer :: unit, step, i
    do i = 1, size(field)
      field(i) = sqrt(real(i, 8))
    end do
    open(newunit=unit, file='ckpt/stream.bin', access='stream', form='unformatted', status='replace')
    write(unit) size(field), field
    write(unit, pos=1) 1000
    close(unit)
    open(newunit=unit, file='ckpt/steps.seq', form='unformatted', status='replace')
    do step = 1, 4
      write(unit) step, field(1:1000 * step)
    end do
    close(unit)
    open(newunit=unit, file='ckpt/steps.seq', form='unformatted', status='old', position='append')
    write(unit) 5, field(1:5000)
    close(unit)
    open(newunit=unit, file='ckpt/records.dir', form='unformatted', access='direct', recl=4096)
    do i = 40, 1, -1
      write(unit, rec=i) field(i:i + 511)
    end do
    close(unit)
    open(newunit=unit, file='ckpt/scrap', form='unformatted')
    write(unit) field
    close(unit, status='delete')
    ! Left open: the run-time library flushes and closes it after everybody's destructors.
    open(newunit=unit, file='ckpt/open.txt')
    do i = 1, 2000
      write(unit, '(i8, es24.16)') i, field(i)
    end do
    print '(a)', 'written'
  end subroutine

  subroutine restart()
    real(8) :: field(200000)
    integer :: unit, step, count, i, lines, status
    integer(8) :: bytes
    logical :: there
    inquire(file='ckpt/stream.bin', exist=there, size=bytes)
    print '(l2, i10)', there, bytes
    inquire(file='ckpt/scrap', exist=there)
    print '(l2)', there
    open(newunit=unit, file='ckpt/stream.bin', access='stream', form='unformatted', status='old')
    read(unit) count, field(1:count)
    print '(i8, es24.16)', count, sum(field(1:count))
    close(unit)
    open(newunit=unit, file='ckpt/steps.seq', form='unformatted', status='old', action='readwrite')
    do i = 1, 5
      read(unit) step, field(1:1000 * step)
      print '(i8, es24.16)', step, sum(field(1:1000 * step))
    end do
    backspace(unit)
    write(unit) 9, field(1:100)
    close(unit)
    open(newunit=unit, file='ckpt/records.dir', form='unformatted', access='direct', recl=4096, status='old')
    read(unit, rec=17) field(1:512)
    write(unit, rec=41) field(1:512)
    close(unit)
    open(newunit=unit, file='ckpt/open.txt', status='old')
    lines = 0
    do
      read(unit, *, iostat=status) count
      if (status /= 0) exit
      lines = lines + 1
    end do
    print '(i8)', lines
    close(unit, status='delete')
  end subroutine
end program
